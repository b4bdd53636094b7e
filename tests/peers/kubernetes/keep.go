//go:build tools

// Package tools keeps in go.mod what the node end-to-end suite needs. The suite is a test binary, which a tool line
// cannot name.
package tools

import (
	_ "k8s.io/kubernetes/test/e2e_node"
)
