//go:build tools

// Package tools keeps in go.mod what critest needs. critest is a test binary, which a tool line cannot name.
package tools

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
