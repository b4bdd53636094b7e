#!/usr/bin/env bash
# Builds the image twice, under different time zones, umasks and file times, and compares.
#   images/check.sh --agent FILE --cache DIR
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

agent=''
for ((i = 1; i <= $#; i++)); do
    [ "${!i}" != --agent ] || { next=$((i + 1)) && agent=${!next}; }
done
cp "$agent" "$work/agent"
touch -d '2001-02-03' "$work/agent"

"$here/build.sh" "$@" --out "$work/first" >"$work/log" || { cat "$work/log" >&2; exit 1; }
(umask 077 && TZ=Pacific/Kiritimati LC_ALL=C \
    "$here/build.sh" "$@" --agent "$work/agent" --out "$work/second" >"$work/log") || { cat "$work/log" >&2; exit 1; }

failed=0
for file in vmlinux bulkhead-guest.cpio manifest.json; do
    if cmp "$work/first/$file" "$work/second/$file"; then
        echo "test image::same_inputs_same_bytes::$file ... ok"
    else
        echo "test image::same_inputs_same_bytes::$file ... FAILED"
        failed=$((failed + 1))
    fi
done
[ "$failed" -eq 0 ]
