#!/usr/bin/env bash
# Makes what a guest boots from, out of distribution packages and the static agent:
#
#   OUT/vmlinux               uncompressed kernel with a PVH entry
#   OUT/bulkhead-guest.cpio   initramfs: the agent as /init, modules
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

# lean FILE…: takes out of modules what a guest does not read: symbols that nothing refers to, type information for
# BPF, and the signature. Checking that is most of the time that loading takes, and it proves nothing here: kernel and
# modules come to the guest from the same hand, the host's.
lean() {
    strip --strip-unneeded --remove-section=.BTF --remove-section=.comment "$@"
}

# A beginning for awk programs that read what depmod wrote: a module's place below kernel/, and its name as the kernel
# spells it.
spelling='
    function place(field) { sub(/:$/, "", field); sub(/^kernel\//, "", field); return field }
    function name(path) { sub(/.*\//, "", path); sub(/\.ko$/, "", path); gsub(/-/, "_", path); return path }'
# The same, with what each module needs; depmod names last what must be loaded first.
needs=$spelling'
    FILENAME ~ /modules\.dep$/ { path = place($1); $1 = ""; gsub(/ kernel\//, " "); needs[path] = $0 }'

# chosen LIST: the files below kernel/ that the rules of a list take, in depmod's order. demand.list says what a rule is.
chosen() {
    awk -v aliases="$tree/modules.alias" -v list="$1" "$spelling"'
        function fail(rule) {
            print "  image: " list ": the kernel package has nothing for \"" rule "\"" >"/dev/stderr"
            failed = 1
        }
        # Whether the rule, a folder or a module, is about this one.
        function about(rule, path) {
            return rule ~ /\/$/ ? index(path, rule) == 1 : name(rule) == name(path)
        }
        FILENAME == list { sub(/#.*/, ""); if (NF) { rule[++rules] = $1; by[rules] = $2 }; next }
        FILENAME == aliases { if ($1 == "alias") alias[$3] = alias[$3] " " $2; next }
        {
            path = place($1)
            taken = 0
            for (i = 1; i <= rules; i++) {
                out = rule[i] ~ /^!/
                if (!about(substr(rule[i], out ? 2 : 1), path)) continue
                if (by[i] != "" && index(alias[name(path)], " " by[i]) == 0) continue
                used[i] = 1
                taken = !out
            }
            if (taken) print path
        }
        END {
            for (i = 1; i <= rules; i++) if (!(i in used)) fail(rule[i])
            exit failed
        }' "$1" "$tree/modules.alias" "$tree/modules.dep"
}

# in_order FILE…: each file after those it depends on.
in_order() {
    awk -v wanted="$*" "$needs"'
        # Says a file unless it was said before.
        function say(path) { if (!said[path]++) print path }
        END {
            n = split(wanted, want, " ")
            for (i = 1; i <= n; i++) {
                for (j = split(needs[want[i]], need, " "); j > 0; j--) say(need[j])
                say(want[i])
            }
        }' "$tree/modules.dep"
}

# demand FILE…: for each module that waits for being asked for a line: the names by which the kernel may ask, a colon,
# the modules to load, in order. Of names with a wildcard, which are those of devices, only those of buses on which the agent
# looks for devices without a driver.
demand() {
    awk -v wanted="$*" "$needs"'
        $1 == "alias" { if ($2 !~ /[*?[]/ || $2 ~ /^(virtio|scsi):[^*?[]*\*$/) alias[$3] = alias[$3] " " $2 }
        END {
            n = split(wanted, want, " ")
            for (i = 1; i <= n; i++) {
                line = name(want[i]) alias[name(want[i])] " :"
                for (j = split(needs[want[i]], need, " "); j > 0; j--) line = line " " name(need[j])
                print line " " name(want[i])
            }
        }' "$tree/modules.dep" "$tree/modules.alias"
}

# archive DIR: packs the modules there into $modules/archive, one after the other, each by itself: every file that a
# guest unpacks costs its boot, and hardly a guest needs any of these. $modules/index says where each begins, and its
# length.
archive() {
    gzip -9n "$1"/*.ko
    (
        cd "$1"
        LC_ALL=C
        cat -- *.ko.gz >"$modules/archive"
        stat -c '%n %s' -- *.ko.gz
    ) | awk '{ sub(/\.ko\.gz$/, "", $1); gsub(/-/, "_", $1); print $1, 0 + at, $2; at += $2 }' >"$modules/index"
}

# module_files: what the image has in /lib/modules
module_files() {
    echo order demand index archive
    cat "$modules/order"
}

write_cpio() {
    local dir file
    for dir in dev etc lib lib/modules proc run sbin sys tmp; do
        newc_dir "$dir" 0755
    done
    newc_char dev/console 0600 5 1
    newc_file init 0755 "$work/guest/init"
    newc_link sbin/modprobe ../init
    for file in $(module_files); do
        newc_file "lib/modules/$file" 0644 "$modules/$file"
    done
    newc_end
}

# entries FILE…: lines of the manifest, by the place below the current folder
entries() {
    paste -d' ' <(stat -Lc '%n %s' "$@") <(sha256sum "$@") |
        awk '{ printf "%s    { \"name\": \"%s\", \"size\": %s, \"sha256\": \"%s\" }", (NR > 1 ? ",\n" : ""), $1, $2, $3 }'
}

write_manifest() {
    printf '{\n  "kernel": { "package": "%s", "version": "%s", "sha256": "%s" },\n' \
        "$KERNEL_PACKAGE" "$KERNEL_VERSION" "$KERNEL_SHA256"
    printf '  "files": [\n%s\n  ],\n' "$(cd "$work" && entries vmlinux bulkhead-guest.cpio)"
    printf '  "guest": [\n%s\n  ]\n}\n' \
        "$(cd "$work/guest" && entries init $(module_files | xargs -n 1 printf 'lib/modules/%s '))"
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

tree=$(echo "$work"/deb/lib/modules/*)
find "$tree/kernel" -name '*.ko.*' | while read -r file; do
    decompress "$file" >"${file%.*}" && rm "$file"
done
depmod -b "$work/deb" "${tree##*/}" || fail 'depmod cannot read the kernel package'
modules=$work/guest/lib/modules
mkdir -p "$modules"

# Every guest loads these itself, so nobody asks for them.
boot=$(chosen "$module_list")
boot=$(in_order $boot)
waiting=$(chosen "$here/demand.list")
waiting=$(in_order $waiting | grep --invert-match --line-regexp --fixed-strings "$boot")
mkdir "$work/waiting"
(cd "$tree/kernel" && cp $boot "$modules/" && cp $waiting "$work/waiting/")
lean "$modules"/*.ko "$work"/waiting/*.ko
archive "$work/waiting"
sed 's|.*/||' <<<"$boot" >"$modules/order"
demand $waiting >"$modules/demand"

# Symbols would only be copied into every guest's memory.
strip --strip-all -o "$work/guest/init" "$agent"
write_cpio >"$work/bulkhead-guest.cpio"
write_manifest >"$work/manifest.json"
mkdir -p "$out"
for file in vmlinux bulkhead-guest.cpio manifest.json; do
    # Only what changed is replaced, in one step: a VM may be booting from it.
    cmp -s "$work/$file" "$out/$file" || { cp "$work/$file" "$out/.$file" && mv "$out/.$file" "$out/$file"; }
    say "$out/$file $(stat -c %s "$out/$file") bytes"
done
