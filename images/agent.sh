#!/usr/bin/env bash
# Builds the static bulkhead-agent and prints its path.
#   images/agent.sh PROFILE     "fast" (tests; the agent's own profile is then "fast-guest") or "release"
#
# libseccomp must be named static on its own: crt-static alone would link it dynamically without
# an error, and the program would crash at start. A fixed load address (no PIE) spares PID 1 its
# relocations. The flags are kept to one target, so that host programs and build scripts are built as
# always and, with them, what both builds share.
set -euo pipefail

profile=${1:?usage: images/agent.sh PROFILE}
[ "$profile" != fast ] || profile=fast-guest
target=x86_64-unknown-linux-gnu
root=$(cd "$(dirname "$0")/.." && pwd)

export LIBSECCOMP_LINK_TYPE=static
LIBSECCOMP_LIB_PATH=$(pkg-config --variable=libdir libseccomp)
export LIBSECCOMP_LIB_PATH
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static'

(cd "$root" && cargo build --locked --package bulkhead-agent --profile "$profile" \
    --target "$target") >&2

agent=$root/target/$target/$profile/bulkhead-agent
if readelf -lW "$agent" | grep INTERP >&2 || readelf -dW "$agent" | grep NEEDED >&2; then
    echo "$agent is not static: the guest has no dynamic linker and no libraries" >&2
    exit 1
fi
echo "$agent"
