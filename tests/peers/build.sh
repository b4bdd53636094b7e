#!/usr/bin/env bash
# Brings the peers that Debian 12 has not, or has too old, into <repository>/.peers:
#
#   .peers/bin/{virtiofsd,vhost-device-vsock}      crate registry, or a link to the machine's own
#   .peers/bin/promtool                            Debian's package prometheus, whose daemon is not installed
#   .peers/containerd-2.4/bin/{containerd,ctr,containerd-shim-runc-v2}
#                                                     Go module proxy, newest stable line
#   .peers/containerd-2.3/bin/…                    Go module proxy, long-term support
#   .peers/containerd-2.1/bin/…                    Go module proxy, oldest supported line
#   .peers/cri-tools/bin/{critest.test,crictl,ginkgo,suite-helper}
#                                                     Go module proxy: the CRI validation suite
#   .peers/helm/bin/chart                          Go module proxy: Helm's linter and templates, Kubernetes' types
#   .peers/kubernetes/bin/{kubelet,kubectl,e2e_node.test,agnhost,nonewprivs,registry,ginkgo,localhost.*}
#                                                     Go module proxy: Kubernetes' node end-to-end suite
#
#   tests/peers/build.sh all         everything but kubernetes (what no argument means, too)
#   tests/peers/build.sh demo        what one pod needs: helpers and the newest containerd
#   tests/peers/build.sh kubernetes  the node end-to-end suite alone: it takes as long as all the others together
#
# Nothing is installed outside that folder. What is already there in the pinned version is kept,
# so a second run takes a second.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
peers=$(cd "$here/../.." && pwd)/.peers
# shellcheck source=versions.env
. "$here/versions.env"

say() { printf '  peers: %s\n' "$*"; }

# took SINCE: how long it took, for the end of a line
took() { printf 'done in %d s' "$((SECONDS - $1))"; }

fail() {
    printf '  peers: %s\n' "$*" >&2
    exit 1
}

# version_of PROGRAM: the "1.2.3" in its --version answer, empty when it has none.
version_of() {
    "$1" --version 2>/dev/null | sed -n 's/.*[^0-9.]v\{0,1\}\([0-9]\+\.[0-9]\+\.[0-9]\+\).*/\1/p' | head -n 1
}

# at_least VERSION OLDEST
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# machines_own NAME OLDEST: the path of an installed program that is new enough.
machines_own() {
    local path version
    for path in "/usr/libexec/$1" "/usr/bin/$1" "/usr/local/bin/$1"; do
        [ -x "$path" ] || continue
        # QEMU's C daemon counts in QEMU's versions (7.2.0), and says so.
        "$path" --version 2>/dev/null | grep -qi 'using FUSE kernel interface' && continue
        version=$(version_of "$path")
        if [ -n "$version" ] && at_least "$version" "$2"; then
            echo "$path"
            return 0
        fi
    done
    return 1
}

# from_crates NAME PINNED OLDEST
from_crates() {
    local own since=$SECONDS
    if [ "$(version_of "$peers/bin/$1")" = "$2" ]; then
        say "$1 $2 is there"
    elif own=$(machines_own "$1" "$3"); then
        ln -sfn "$own" "$peers/bin/$1"
        say "$1: using $own ($(version_of "$own"))"
    else
        say "building $1 $2 from the crate registry (about 2 minutes)"
        # A target folder of its own, kept out of the workspace's and dropped afterwards. Linking everything at once (LTO)
        # would take as long as the rest, on one core.
        CARGO_TARGET_DIR="$peers/build" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            cargo install --quiet --locked --force --root "$peers" "$1@$2"
        [ "$(version_of "$peers/bin/$1")" = "$2" ] || fail "$peers/bin/$1 does not answer as $2"
        say "$1 $2: $(took "$since")"
    fi
}

# containerd_line LINE: builds the version that containerd-LINE/go.mod names.
containerd_line() {
    local module="$here/containerd-$1" bin="$peers/containerd-$1/bin" version since=$SECONDS
    version=$(sed -n 's|^.*github.com/containerd/containerd/v2 \(v[0-9.]*\).*$|\1|p' "$module/go.mod")
    [ -n "$version" ] || fail "$module/go.mod names no containerd version"
    # runc's shim is for the control test, which runs the same harness without Bulkhead.
    if [ "v$(version_of "$bin/containerd")" = "$version" ] && [ "v$(version_of "$bin/ctr")" = "$version" ] &&
        [ -x "$bin/containerd-shim-runc-v2" ]; then
        say "containerd $version is there"
        return
    fi
    say "building containerd $version from the Go module proxy (about 2 minutes)"
    mkdir -p "$bin"
    # Without cgo no btrfs or SELinux headers are needed. The tool lines of go.mod say what is built.
    (cd "$module" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false \
        -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$version" \
        -o "$bin/" tool)
    [ "v$(version_of "$bin/containerd")" = "$version" ] || fail "$bin/containerd does not answer as $version"
    say "containerd $version: $(took "$since")"
}

# cri_tools: builds the CRI validation suite that cri-tools/go.mod names, ginkgo which runs it, and the programs
# for the suite's images.
cri_tools() {
    local module="$here/cri-tools" bin="$peers/cri-tools/bin" version since=$SECONDS
    version=$(sed -n 's|^.*sigs.k8s.io/cri-tools \(v[0-9.]*\).*$|\1|p' "$module/go.mod")
    [ -n "$version" ] || fail "$module/go.mod names no cri-tools version"
    if [ "v$(version_of "$bin/crictl")" = "$version" ] && [ -x "$bin/critest.test" ] && [ -x "$bin/ginkgo" ] &&
        [ "$bin/suite-helper" -nt "$module/suite-helper/main.go" ]; then
        say "cri-tools $version is there"
        return
    fi
    say "building cri-tools $version from the Go module proxy (about a minute)"
    mkdir -p "$bin"
    (
        cd "$module"
        export CGO_ENABLED=0
        # crictl comes last: its version says that all are there.
        go test -c -mod=readonly -trimpath -buildvcs=false -o "$bin/critest.test" sigs.k8s.io/cri-tools/cmd/critest
        go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -o "$bin/suite-helper" ./suite-helper
        go build -mod=readonly -trimpath -buildvcs=false \
            -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version" -o "$bin/" tool
    )
    [ "v$(version_of "$bin/crictl")" = "$version" ] || fail "$bin/crictl does not answer as $version"
    say "cri-tools $version: $(took "$since")"
}

# promtool: Prometheus' check of what it is to scrape.
promtool() {
    local place
    [ ! -x "$peers/bin/promtool" ] || { say "promtool is there"; return; }
    say "taking promtool out of Debian's package prometheus"
    place=$(mktemp -d)
    # The lists of packages may be old, or not there. apt's own user writes where it may, so it says that it may not here.
    (cd "$place" && { apt-get -qq download prometheus 2>/dev/null ||
        { apt-get -qq update && apt-get -qq download prometheus 2>/dev/null; }; } && dpkg-deb -x ./*.deb .) ||
        fail "cannot get Debian's package prometheus: run apt-get update as root, then this again"
    install -m 0755 "$place/usr/bin/promtool" "$peers/bin/promtool"
    rm -rf "$place"
}

# helm: builds the checker of charts and manifests in helm/, of the versions that helm/go.mod names.
helm() {
    local module="$here/helm" program="$peers/helm/bin/chart" since=$SECONDS
    if [ "$program" -nt "$module/main.go" ] && [ "$program" -nt "$module/go.mod" ]; then
        say "the checker of charts is there"
        return
    fi
    say "building Helm's linter and templates from the Go module proxy (about 3 minutes)"
    mkdir -p "$peers/helm/bin"
    (cd "$module" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -o "$program" .)
    touch "$program"
    say "the checker of charts: $(took "$since")"
}

# kubernetes: builds the node end-to-end suite that kubernetes/go.mod names, the kubelet that it starts, ginkgo which
# runs it, and the programs of its images.
kubernetes() {
    local module="$here/kubernetes" bin="$peers/kubernetes/bin" version minor program since=$SECONDS missing=no
    version=$(sed -n 's|^.*k8s.io/kubernetes \(v[0-9.]*\).*$|\1|p' "$module/go.mod")
    [ -n "$version" ] || fail "$module/go.mod names no Kubernetes version"
    for program in e2e_node.test kubectl agnhost nonewprivs ginkgo localhost.crt localhost.key; do
        [ -s "$bin/$program" ] || missing=yes
    done
    if [ "$missing" = no ] && [ "v$(version_of "$bin/kubelet")" = "$version" ] &&
        [ "$bin/registry" -nt "$module/registry/main.go" ]; then
        say "kubernetes $version is there"
        return
    fi
    say "building kubelet and the node end-to-end suite $version from the Go module proxy (about 8 minutes)"
    mkdir -p "$bin"
    minor=${version#v1.}
    (
        cd "$module"
        export CGO_ENABLED=0
        # API server and kubelet say this version, and what they offer goes by it.
        at=k8s.io/component-base/version
        flags="-s -w -X $at.gitVersion=$version -X $at.gitMajor=1 -X $at.gitMinor=${minor%%.*}"
        # Without vet, which would look through Kubernetes as a whole and take as long as compiling it.
        go test -c -vet=off -mod=readonly -trimpath -buildvcs=false -ldflags "$flags" -o "$bin/e2e_node.test" \
            k8s.io/kubernetes/test/e2e_node
        go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -o "$bin/registry" ./registry
        # agnhost's image has a certificate for its web server.
        source=$(go list -mod=readonly -m -f '{{.Dir}}' k8s.io/kubernetes)
        install -m 644 "$source"/test/images/agnhost/porter/localhost.* "$bin/"
        # kubelet comes last: its version says that all are there.
        for program in $(go list -mod=readonly tool | grep -v '/kubelet$') k8s.io/kubernetes/cmd/kubelet; do
            go build -mod=readonly -trimpath -buildvcs=false -ldflags "$flags" -o "$bin/" "$program"
        done
    )
    [ "v$(version_of "$bin/kubelet")" = "$version" ] || fail "$bin/kubelet does not answer as $version"
    say "kubernetes $version: $(took "$since")"
}

wanted=${1:-all}
case "$wanted" in
    all | demo) ;;
    kubernetes)
        kubernetes
        exit
        ;;
    *) fail "usage: tests/peers/build.sh [all|demo|kubernetes]" ;;
esac
mkdir -p "$peers/bin"
# Beside each other: each has times in which it only waits for the network or for one core.
containerd_line 2.4 &
containerd=$!
trap 'kill "$containerd" 2>/dev/null || true' EXIT
from_crates virtiofsd "$VIRTIOFSD_VERSION" "$VIRTIOFSD_OLDEST"
from_crates vhost-device-vsock "$VHOST_DEVICE_VSOCK_VERSION" "$VHOST_DEVICE_VSOCK_OLDEST"
rm -rf "$peers/build"
wait "$containerd"
if [ "$wanted" = all ]; then
    containerd_line 2.3
    containerd_line 2.1
    cri_tools
    promtool
    helm
fi
