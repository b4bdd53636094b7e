// suite-helper stands in for the programs in the validation suite's images that busybox does not have, or does not
// have the way the suite counts on. What it does depends on the name it is called by:
//
//	nginx, httpd   a web server on the port given as its argument (80 without one), whose process title and pid file
//	               are those of nginx
//	nnp            prints its effective user id; its file is setuid root
//	sh             busybox's shell, except that a command of one word is run from its file, as a shell does: Debian's
//	               busybox would run its own applet of that name, whether the file can be run or not
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

const (
	title   = "nginx: master process "
	pidFile = "/var/run/nginx.pid"
	busybox = "/bin/busybox"
)

var oneWord = regexp.MustCompile(`^[a-z]+$`)

func main() {
	name := filepath.Base(os.Args[0])
	switch {
	case strings.HasPrefix(os.Args[0], title):
		if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			log.Fatal(err)
		}
		serve("nginx")
	case name == "nginx":
		// As nginx does: the title is in the first argument.
		args := append([]string{title + os.Args[0]}, os.Args[1:]...)
		log.Fatal(syscall.Exec(os.Args[0], args, os.Environ()))
	case name == "httpd":
		serve("httpd")
	case name == "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	case name == "sh":
		shell()
	default:
		log.Fatalf("not to be called as %q", os.Args[0])
	}
}

func serve(name string) {
	port := "80"
	if len(os.Args) > 1 {
		port = os.Args[1]
	}
	log.Printf("%s serves on port %s", name, port)
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(answer, "Welcome to %s!\n", name)
	})
	log.Fatal(http.ListenAndServe(":"+port, nil))
}

func shell() {
	if len(os.Args) == 3 && os.Args[1] == "-c" && oneWord.MatchString(os.Args[2]) {
		word := os.Args[2]
		// Builtins have no file.
		if err := syscall.Exec("/bin/"+word, []string{word}, os.Environ()); err != syscall.ENOENT {
			message := err.Error()
			fmt.Fprintf(os.Stderr, "%s: %s: %s\n", os.Args[0], word, strings.ToUpper(message[:1])+message[1:])
			os.Exit(126)
		}
	}
	args := append([]string{"sh"}, os.Args[1:]...)
	log.Fatal(syscall.Exec(busybox, args, os.Environ()))
}
