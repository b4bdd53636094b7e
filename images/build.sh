#!/usr/bin/env bash
# Makes what a guest boots from, out of distribution packages and the static agent:
#
#   OUT/vmlinux               uncompressed kernel with a PVH entry
#   OUT/bulkhead-guest.cpio   initramfs: the agent as /init, modules, /lib/modules/order
#   OUT/manifest.json         versions, sizes and digests of both and of everything inside
#
# Same inputs, same bytes: owner, times and inode numbers are fixed and nothing of the machine
# gets in (images/check.sh builds twice and compares).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
agent='' out='' cache='' kernel=pinned module_list=$here/modules.list

usage() {
    cat <<'END'
usage: images/build.sh --agent FILE --out DIR --cache DIR [--kernel pinned|newest] [--modules FILE]
  --agent   the static bulkhead-agent, becomes /init
  --out     where vmlinux, bulkhead-guest.cpio and manifest.json go
  --cache   where downloaded kernel packages are kept
  --kernel  "pinned" (images/kernel.env) or "newest": what the machine's apt offers now
  --modules the kernel modules to take; default images/modules.list
END
}

say() { printf '  image: %s\n' "$*"; }

fail() {
    printf '  image: %s\n' "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case "$1" in
        --agent) agent=$2 ;;
        --out) out=$2 ;;
        --cache) cache=$2 ;;
        --kernel) kernel=$2 ;;
        --modules) module_list=$2 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift 2
done
[ -n "$agent" ] && [ -n "$out" ] && [ -n "$cache" ] || { usage >&2; exit 2; }
[ -x "$agent" ] || fail "$agent is not an executable file; build the agent first"

# shellcheck source=kernel.env
. "$here/kernel.env"
# shellcheck source=newc.sh
. "$here/newc.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# choose_newest: replaces the pin by the kernel that linux-image-cloud-amd64 stands for now.
choose_newest() {
    KERNEL_PACKAGE=$(apt-cache depends --no-recommends --no-suggests linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1)
    [ -n "$KERNEL_PACKAGE" ] || fail 'apt knows no linux-image-cloud-amd64; run "make setup" on Debian'
    KERNEL_VERSION=$(apt-cache policy "$KERNEL_PACKAGE" | sed -n 's/^ *Candidate: //p')
    KERNEL_SHA256=$(apt-cache show "$KERNEL_PACKAGE=$KERNEL_VERSION" | sed -n 's/^SHA256: //p' | head -n 1)
}

# download: sets $deb to the verified kernel package.
download() {
    deb=$cache/${KERNEL_PACKAGE}_${KERNEL_VERSION}_amd64.deb
    if [ ! -f "$deb" ]; then
        say "downloading $KERNEL_PACKAGE $KERNEL_VERSION"
        mkdir -p "$cache" "$work/download"
        (cd "$work/download" && apt-get -q download -o APT::Sandbox::User=root \
            "$KERNEL_PACKAGE=$KERNEL_VERSION" >"$work/apt.log" 2>&1) || return 1
        mv "$work/download/"*.deb "$deb"
    fi
    echo "$KERNEL_SHA256  $deb" | sha256sum --check --quiet --strict ||
        fail "$deb is not the expected file; delete it and try again"
}

# decompress FILE: writes it uncompressed to standard output, whichever format it has.
decompress() {
    case "$(head -c 4 "$1" | od -An -tx1 | tr -d ' \n')" in
        02214c18) lz4 -dc "$1" ;;
        28b52ffd) zstd -qdc "$1" ;;
        fd377a58) xz -dc "$1" ;;
        1f8b*) gzip -dc "$1" ;;
        *) fail "unknown compression in $1" ;;
    esac
}

# number FILE OFFSET BYTES: an unsigned little-endian number.
number() {
    od -An -t "u$3" -j "$2" -N "$3" --endian=little "$1" | tr -d ' '
}

# extract_vmlinux BZIMAGE VMLINUX. The offsets are the kernel's documented x86 boot protocol.
extract_vmlinux() {
    local sectors offset length
    sectors=$(number "$1" 497 1)
    offset=$(((sectors + 1) * 512 + $(number "$1" 584 4)))
    length=$(number "$1" 588 4)
    dd if="$1" of="$work/payload" bs=1M iflag=skip_bytes,count_bytes status=none \
        skip="$offset" count="$length"
    # The build appends the unpacked size, which gzip has of its own and the others trip over.
    [ "$(number "$work/payload" 0 2)" = 35615 ] || truncate -s -4 "$work/payload"
    decompress "$work/payload" >"$2"
    # XEN_ELFNOTE_PHYS32_ENTRY (18): where a VMM enters the uncompressed kernel.
    readelf -n "$2" 2>/dev/null | grep '0x00000012' >/dev/null ||
        fail "the kernel in $1 has no PVH entry: QEMU could not boot it as an ELF file"
}

# module_file NAME: path of a module, whose file name may have - or _.
module_file() {
    local name=${1//-/_}
    find "$modules" -name "${name//_/[-_]}.ko*" | sort | sed -n 1p
}

# unsign MODULE: cuts off the signature that follows the ELF file: signature, 12 bytes of which the
# last four are its length, and a line of text (the kernel's scripts/sign-file.c).
# Checking it is most of the time that loading takes, and it proves nothing here: kernel and modules
# come to the guest from the same hand, the host's.
unsign() {
    local mark='~Module signature appended~' size length
    size=$(stat -c %s "$1")
    [ "$(tail -c 28 "$1" | tr -d '\0')" = "$mark" ] || return 0
    length=$(od -An -t u4 -j $((size - 32)) -N 4 --endian=big "$1" | tr -d ' ')
    truncate -s "$((size - 40 - length))" "$1"
}

# modinfo MODULE: what it says about itself, a line each. By way of a file: objcopy removes its output when it fails,
# even if that is /dev/stdout.
modinfo() {
    objcopy -O binary --only-section=.modinfo "$1" "$work/modinfo" || fail "cannot read $1"
    tr '\0' '\n' <"$work/modinfo"
}

# visit NAME: appends the module and, before it, what it depends on to $ordered.
visit() {
    local name=${1//-/_} file dependency dependencies
    case " $visited " in *" $name "*) return ;; esac
    visited="$visited $name"
    file=$(module_file "$name")
    [ -n "$file" ] || fail "the kernel package has no module $1"
    cp "$file" "$work/modules/"
    case "$file" in
        *.ko) ;;
        *) decompress "$file" >"$work/modules/$name.ko" && rm "$work/modules/${file##*/}" && file=$name.ko ;;
    esac
    unsign "$work/modules/${file##*/}"
    dependencies=$(modinfo "$work/modules/${file##*/}" | sed -n 's/^depends=//p' | tr ',' ' ')
    for dependency in $dependencies; do
        visit "$dependency"
    done
    ordered="$ordered ${file##*/}"
}

# names_of FILE: the names by which the kernel asks for a module.
names_of() {
    basename "$1" .ko
    modinfo "$1" | sed -n 's/^alias=\([^*?[]*\)$/\1/p'
}

# demand NAME: for each name of the module one line: the name, then the files to load.
demand() {
    local before=$ordered name
    visited=$loaded ordered=''
    visit "$1"
    # What is loaded from the start nobody asks for.
    [ -n "$ordered" ] || { ordered=$before; return 0; }
    for name in $(names_of "$work/modules/${ordered##* }"); do
        echo "$name$ordered"
    done
    # A dependency that an earlier one has as well is in the image once.
    ordered="$before$(for name in $ordered; do case " $before " in *" $name "*) ;; *) printf ' %s' "$name" ;; esac; done)"
}

write_cpio() {
    local dir module
    for dir in dev etc lib lib/modules proc run sbin sys tmp; do
        newc_dir "$dir" 0755
    done
    newc_char dev/console 0600 5 1
    newc_file init 0755 "$work/init"
    newc_link sbin/modprobe ../init
    newc_file lib/modules/order 0644 "$work/order"
    newc_file lib/modules/demand 0644 "$work/demand"
    for module in $ordered; do
        newc_file "lib/modules/$module" 0644 "$work/modules/$module"
    done
    newc_end
}

# entry NAME FILE: one line of the manifest
entry() {
    printf '    { "name": "%s", "size": %s, "sha256": "%s" }' \
        "$1" "$(stat -Lc %s "$2")" "$(sha256sum "$2" | cut -d ' ' -f 1)"
}

write_manifest() {
    local module
    printf '{\n  "kernel": { "package": "%s", "version": "%s", "sha256": "%s" },\n' \
        "$KERNEL_PACKAGE" "$KERNEL_VERSION" "$KERNEL_SHA256"
    printf '  "files": [\n'
    entry vmlinux "$work/vmlinux"
    printf ',\n'
    entry bulkhead-guest.cpio "$work/bulkhead-guest.cpio"
    printf '\n  ],\n  "guest": [\n'
    entry init "$work/init"
    for module in $ordered; do
        printf ',\n'
        entry "lib/modules/$module" "$work/modules/$module"
    done
    printf '\n  ]\n}\n'
}

case "$kernel" in
    pinned) ;;
    newest) choose_newest ;;
    *) usage >&2; exit 2 ;;
esac
if ! download; then
    [ "$kernel" = pinned ] || fail "cannot download $KERNEL_PACKAGE: $(tail -n 1 "$work/apt.log")"
    say "WARNING: $KERNEL_PACKAGE $KERNEL_VERSION is not to be had: $(tail -n 1 "$work/apt.log")"
    choose_newest
    say "WARNING: taking $KERNEL_PACKAGE $KERNEL_VERSION instead; pin it in images/kernel.env"
    download || fail "cannot download $KERNEL_PACKAGE either: $(tail -n 1 "$work/apt.log")"
fi

say "unpacking $KERNEL_PACKAGE $KERNEL_VERSION"
dpkg-deb -x "$deb" "$work/deb"
extract_vmlinux "$(echo "$work"/deb/boot/vmlinuz-*)" "$work/vmlinux"

modules=$(echo "$work"/deb/lib/modules/*) visited='' ordered=''
mkdir "$work/modules"
for module in $(sed 's/#.*//' "$module_list"); do
    visit "$module"
done
printf '%s\n' $ordered >"$work/order"
loaded=$visited
for module in $(sed 's/#.*//' "$here/demand.list"); do
    demand "$module" >>"$work/demand"
done

# Symbols would only be copied into every guest's memory.
strip --strip-all -o "$work/init" "$agent"
write_cpio >"$work/bulkhead-guest.cpio"
write_manifest >"$work/manifest.json"
mkdir -p "$out"
for file in vmlinux bulkhead-guest.cpio manifest.json; do
    # Only what changed is replaced, in one step: a VM may be booting from it.
    cmp -s "$work/$file" "$out/$file" || { cp "$work/$file" "$out/.$file" && mv "$out/.$file" "$out/$file"; }
    say "$out/$file $(stat -c %s "$out/$file") bytes"
done
