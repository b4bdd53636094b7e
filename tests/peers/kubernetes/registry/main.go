// registry serves the images of an OCI layout to containerd, as much of a registry as a pull asks for. The node
// end-to-end suite pulls images anew that the node has, and a test node has no way to the registry that they are named after.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// An image's full name in the layout's index.
const nameKey = "io.containerd.image.name"

type index struct {
	Manifests []struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Annotations map[string]string `json:"annotations"`
	} `json:"manifests"`
}

type registry struct {
	layout string
	host   string
	index  index
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: registry LAYOUT HOST ADDRESS")
	}
	served := registry{layout: os.Args[1], host: os.Args[2]}
	text, err := os.ReadFile(filepath.Join(served.layout, "index.json"))
	if err != nil {
		log.Fatal(err)
	}
	if err := json.Unmarshal(text, &served.index); err != nil {
		log.Fatalf("%s's index: %v", served.layout, err)
	}
	log.Fatal(http.ListenAndServe(os.Args[3], served))
}

func (served registry) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	path := strings.TrimPrefix(request.URL.Path, "/v2/")
	if name, reference, found := strings.Cut(path, "/manifests/"); found {
		served.manifest(answer, request, name, reference)
	} else if _, digest, found := strings.Cut(path, "/blobs/"); found {
		served.blob(answer, request, digest)
	} else if path != "" {
		http.NotFound(answer, request)
	}
}

// manifest answers with the image that has this tag or digest.
func (served registry) manifest(answer http.ResponseWriter, request *http.Request, name, reference string) {
	full := served.host + "/" + name + ":" + reference
	for _, image := range served.index.Manifests {
		if image.Digest == reference || image.Annotations[nameKey] == full {
			answer.Header().Set("Content-Type", image.MediaType)
			answer.Header().Set("Docker-Content-Digest", image.Digest)
			served.blob(answer, request, image.Digest)
			return
		}
	}
	http.NotFound(answer, request)
}

func (served registry) blob(answer http.ResponseWriter, request *http.Request, digest string) {
	algorithm, hash, found := strings.Cut(digest, ":")
	if !found || filepath.Base(algorithm) != algorithm || filepath.Base(hash) != hash {
		http.NotFound(answer, request)
		return
	}
	if answer.Header().Get("Content-Type") == "" {
		answer.Header().Set("Content-Type", "application/octet-stream")
	}
	http.ServeFile(answer, request, filepath.Join(served.layout, "blobs", algorithm, hash))
}
