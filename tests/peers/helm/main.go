// Command chart checks Helm charts and Kubernetes manifests. Linter and templates are Helm's own packages; the whole helm
// program has twice as many to build, for clusters, registries and plugins.
//
//	chart template DIRECTORY [VALUES…]   lints the chart, prints what it renders, and checks that as schema does
//	chart schema [FILE…]                 checks manifests; without a file, standard input
//
// A manifest is decoded as an API server with strict field validation does: a field that its type does not have, one that
// stands there twice, and a value of another type are errors. So are names within one workload that refer to nothing.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

const namespace = "bulkhead-system"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) > 1 && arguments[0] == "template":
		return template(arguments[1], arguments[2:])
	case len(arguments) > 0 && arguments[0] == "schema":
		return schema(arguments[1:])
	}
	return errors.New("usage: chart template DIRECTORY [VALUES…] | chart schema [FILE…]")
}

// template prints the rendered chart even if a part of it is wrong, for whoever looks for the cause.
func template(directory string, files []string) error {
	values := map[string]any{}
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		more, err := loader.LoadValues(file)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		values = loader.MergeMaps(values, more)
	}
	wrong := linted(directory, values)
	rendered, err := render(directory, values)
	if err != nil {
		return err
	}
	for _, name := range sorted(rendered) {
		text := rendered[name]
		if strings.HasSuffix(name, "NOTES.txt") || empty([]byte(text)) {
			continue
		}
		fmt.Printf("---\n# Source: %s\n%s\n", name, strings.TrimSpace(text))
		_, err := check(name, strings.NewReader(text))
		wrong = errors.Join(wrong, err)
	}
	return wrong
}

// linted takes warnings for errors.
func linted(directory string, values map[string]any) error {
	var wrong error
	for _, message := range lint.RunAll(directory, values, namespace).Messages {
		if message.Severity >= support.WarningSev {
			wrong = errors.Join(wrong, message)
		}
	}
	return wrong
}

func render(directory string, values map[string]any) (map[string]string, error) {
	chart, err := loader.Load(directory)
	if err != nil {
		return nil, err
	}
	release := common.ReleaseOptions{Name: "bulkhead", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, values, release, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.Render(chart, all)
}

func sorted(rendered map[string]string) []string {
	names := []string{}
	for name := range rendered {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func schema(files []string) error {
	if len(files) == 0 {
		files = []string{"/dev/stdin"}
	}
	var wrong error
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		documents, err := check(path, file)
		if err == nil && documents == 0 {
			err = fmt.Errorf("%s: no document", path)
		}
		wrong = errors.Join(wrong, err)
	}
	return wrong
}

// check counts the documents, and says what is wrong with each.
func check(name string, manifests io.Reader) (int, error) {
	options := json.SerializerOptions{Yaml: true, Strict: true}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, options)
	reader := yaml.NewYAMLReader(bufio.NewReader(manifests))
	var wrong error
	for documents := 0; ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return documents, wrong
		}
		if err != nil {
			return documents, fmt.Errorf("%s: %w", name, err)
		}
		if empty(document) {
			continue
		}
		documents++
		object, _, err := decoder.Decode(document, nil, nil)
		if err == nil {
			err = consistent(object)
		}
		if err != nil {
			wrong = errors.Join(wrong, fmt.Errorf("%s: document %d: %w", name, documents, err))
		}
	}
}

// empty says whether a document has nothing but comments, as a template whose condition does not hold.
func empty(document []byte) bool {
	for _, line := range bytes.Split(document, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

// consistent checks what refers to something else in the same object.
func consistent(object runtime.Object) error {
	set, ok := object.(*appsv1.DaemonSet)
	if !ok {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return err
	}
	if selector.Empty() || !selector.Matches(labels.Set(set.Spec.Template.Labels)) {
		return fmt.Errorf("the selector %q does not match the pods' labels", selector)
	}
	pod := set.Spec.Template.Spec
	volumes := map[string]bool{}
	for _, volume := range pod.Volumes {
		volumes[volume.Name] = false
	}
	for _, container := range append(pod.InitContainers, pod.Containers...) {
		for _, mount := range container.VolumeMounts {
			if _, there := volumes[mount.Name]; !there {
				return fmt.Errorf("container %s mounts %s, which is no volume of the pod", container.Name, mount.Name)
			}
			volumes[mount.Name] = true
		}
	}
	for volume, mounted := range volumes {
		if !mounted {
			return fmt.Errorf("no container mounts the volume %s", volume)
		}
	}
	return nil
}
