// suite-helper stands in for the one applet of busybox that the node end-to-end suite calls and Debian's busybox has
// not: as nmeter it prints the time with milliseconds, once, which is all that `nmeter -d0 '%3t' | head -n1` reads.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"
)

func main() {
	name := filepath.Base(os.Args[0])
	if name != "nmeter" || len(os.Args) != 3 || os.Args[1] != "-d0" || os.Args[2] != "%3t" {
		log.Fatalf("not to be called as %q", os.Args)
	}
	fmt.Println(time.Now().Format("15:04:05.000"))
}
