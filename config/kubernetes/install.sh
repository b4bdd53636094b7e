#!/usr/bin/env bash
# Puts Bulkhead onto a node of Kubernetes, and takes it away again. The Helm chart runs it on each node; it runs as well by
# hand, as root on the node itself.
#
#   install.sh check        says everything that the node lacks
#   install.sh install      checks the node, lays out the files, and restarts what has changed
#   install.sh uninstall    takes everything away; refuses while a pod of Bulkhead is on the node
#
#   --payload DIR     what `make install DESTDIR=DIR PREFIX=/usr/local` has made (default: "payload" beside this script)
#   --prefix DIR      the PREFIX of that command (default: /usr/local)
#   --settings FILE   settings that differ from the shipped ones, in lines like: vm.memory_mib = 512
#                     and profiles, in lines like: profile.big.vm.memory_mib = 1024
#   --unit NAME       the systemd unit of the node's containerd (default: containerd.service)
#   --drop-in PATH    the file that containerd imports (default: /etc/containerd/conf.d/bulkhead.toml)
#   --host DIR        below which directory the node's files are written (default: none, this is the node)
#   --enter COMMAND   words that run a program on the node when put in front of it (default: none, this is the node)
#
# Every step can be repeated, and a run that was cut off is finished by the next one: files are replaced by renaming, and
# what a daemon was last restarted with is recorded only after it runs with it.
set -euo pipefail

command=${1:-}
[ $# -eq 0 ] || shift
payload=$(dirname "$0")/payload prefix=/usr/local settings='' unit=containerd.service
drop_in=/etc/containerd/conf.d/bulkhead.toml host='' enter=()
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
    case $1 in
        --payload) payload=$2 ;;
        --prefix) prefix=$2 ;;
        --settings) settings=$2 ;;
        --unit) unit=$2 ;;
        --drop-in) drop_in=$2 ;;
        --host) host=${2%/} ;;
        --enter) read -ra enter <<<"$2" ;;
        *) echo "there is no option $1" >&2; exit 2 ;;
    esac
    shift 2
done

config=/etc/bulkhead/bulkhead.toml
service=bulkhead-sandboxer.service
units=$prefix/lib/systemd/system
# What this script knows about its earlier runs: the list of files, and digests.
memory=$host$prefix/share/bulkhead/installed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '%s\n' "$*"; }

# die REASON…: the reasons come last, because kubelet shows the end of the log as the container's message.
die() {
    printf '%s\n' "$@" >&2
    exit 1
}

on_node() { "${enter[@]}" "$@"; }

# at_least VERSION OLDEST
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# digest FILE…: of those that are there, one after the other
digest() { { cat -- "$@" 2>/dev/null || true; } | sha256sum | cut -d ' ' -f 1; }

# ---- the settings

# wanted_config: the shipped settings with those of --settings. The shipped file has every key, so an override that
# replaces no line is a mistake. Profiles, of which it has none, come behind it, a table for each group of keys.
wanted_config() {
    awk -v overrides="${settings:-/dev/null}" '
        BEGIN {
            while ((getline line < overrides) > 0) {
                at = index(line, "=")
                if (line ~ /^[ \t]*(#|$)/) continue
                name = substr(line, 1, at - 1)
                gsub(/[ \t]/, "", name)
                value[name] = substr(line, at + 1)
                sub(/^[ \t]+/, "", value[name])
                if (name !~ /^profile\./) continue
                table = key = name
                sub(/\.[^.]*$/, "", table)
                sub(/^.*\./, "", key)
                if (!(table in profiles)) order[++tables] = table
                profiles[table] = profiles[table] key " = " value[name] "\n"
                delete value[name]
            }
        }
        /^\[/ { table = $0; gsub(/[][ \t]/, "", table) }
        /^[a-z_]+ = / && (table "." $1) in value { print $1 " = " value[table "." $1]; used[table "." $1]; next }
        { print }
        END {
            for (at = 1; at <= tables; at++) printf "\n[%s]\n%s", order[at], profiles[order[at]]
            for (name in value) if (!(name in used)) {
                print "there is no setting " name > "/dev/stderr"
                unknown = 1
            }
            exit unknown
        }' "$payload$config"
}

# setting FILE TABLE KEY: the value without quotes, empty if the file does not have it.
setting() {
    awk -v table="[$2]" -v key="$3" '
        /^\[/ { now = $1 }
        now == table && $1 == key && $2 == "=" {
            sub(/^[^=]*=[ \t]*/, "")
            if (!match($0, /^"[^"]*"/)) match($0, /^[^ \t#]*/)
            value = substr($0, 1, RLENGTH)
            gsub(/"/, "", value)
            print value
            exit
        }' "$1"
}

# ---- the node

# find_containerd: its program, the words that name its settings, and its version, from the unit that really starts it.
find_containerd() {
    local exec
    exec=$(on_node systemctl show --property=ExecStart --value "$unit" 2>/dev/null || true)
    containerd=$(sed -n 's/^{ *path=\([^ ;]*\).*/\1/p;q' <<<"$exec")
    containerd_settings=()
    local file
    file=$(sed -n 's/.*argv\[\]=[^;]* \(-c\|--config\)[ =]\([^ ;]*\).*/\2/p' <<<"$exec" | head -n 1)
    [ -z "$file" ] || containerd_settings=(--config "$file")
    containerd_version=''
    [ -z "$containerd" ] || containerd_version=$(on_node "$containerd" --version 2>/dev/null |
        sed -n 's/^containerd .* v\{0,1\}\([0-9]\+\.[0-9]\+\.[0-9]\+\).*/\1/p')
}

# containerd_has TEXT: whether it is in the settings that containerd would start with.
containerd_has() {
    on_node "$containerd" "${containerd_settings[@]}" config dump >"$work/dump" 2>"$work/dump.stderr" &&
        grep -qF -e "$1" "$work/dump"
}

runtime_table=containerd.runtimes.bulkhead]
trial=io.containerd.timeout.bulkhead.trial

# imported: whether containerd reads the drop-in. `imports` in its own answer cannot be trusted: 2.3 and later name a
# default there that they do not follow. So a file of that name has to have an effect. The trial has none on a running
# containerd, and none on one that is started while it is there.
imported() {
    local there=$host$drop_in made=no answer=0
    # Of a run that was cut off.
    ! grep -qsF "$trial" "$there" || rm -f "$there"
    if [ -e "$there" ]; then
        containerd_has "$runtime_table"
        return
    fi
    [ -d "${there%/*}" ] || { mkdir -p "${there%/*}" && made=yes; }
    printf 'version = 3\n[timeouts]\n  "%s" = "1s"\n' "$trial" >"$there"
    containerd_has "$trial" || answer=1
    rm -f "$there"
    [ "$made" = no ] || rmdir "${there%/*}"
    return "$answer"
}

check_containerd() {
    find_containerd
    if [ -z "$containerd" ]; then
        fault "$unit is no unit of this node: name the unit that starts containerd"
    elif [ -z "$containerd_version" ]; then
        fault "$containerd, which $unit starts, does not answer --version as containerd does"
    elif ! at_least "$containerd_version" 2.1; then
        fault "containerd is $containerd_version: 2.1 or newer is needed"
    elif ! containerd_has ''; then
        fault "containerd cannot read its own settings: $(tail -n 1 "$work/dump.stderr")"
    elif ! imported; then
        fault "containerd does not read $drop_in: put this line at the top level of its config.toml" \
            "    imports = [\"${drop_in%/*}/*.toml\"]"
    fi
}

check_kvm() {
    local accelerator why
    accelerator=$(setting "$1" qemu accelerator)
    [ "$accelerator" != tcg ] || return 0
    # Opening it loads the module, and fails where there is none or the processor's virtualisation is switched off.
    why=$(LC_ALL=C on_node dd if=/dev/kvm of=/dev/null count=0 2>&1 >/dev/null) ||
        fault "KVM cannot be used (${why##*: }), and [qemu] accelerator is \"${accelerator:-auto}\": switch on" \
            "    virtualisation in the firmware or for the VM that this node is, or set accelerator = \"tcg\" (slow)"
}

check_qemu() {
    local program version
    program=$(setting "$1" qemu path)
    program=${program:-/usr/bin/qemu-system-x86_64}
    version=$(on_node "$program" --version 2>/dev/null | sed -n 's/.* version \([0-9.]*[0-9]\).*/\1/p' | head -n 1)
    if [ -z "$version" ]; then
        fault "$program does not answer: install QEMU 7.2 or newer on the node (Debian: qemu-system-x86)"
    elif ! at_least "$version" 7.2; then
        fault "$program is QEMU $version: 7.2 or newer is needed"
    fi
}

fault() { faults+=("$@"); }

# check_node: everything that is missing, at once.
check_node() {
    local effective=$work/bulkhead.toml machine kernel
    faults=()
    wanted_config >"$effective" || die 'the settings are wrong, nothing was changed'
    # Settings that the node's administrator has changed stay in force.
    [ ! -e "$host$config" ] || replaceable "$config" "$effective" settings || effective=$host$config
    machine=$(on_node uname -m) kernel=$(on_node uname -r)
    [ "$machine" = x86_64 ] || fault "the node is $machine: only x86_64 is supported"
    at_least "$kernel" 5.15 || fault "the kernel is $kernel: 5.15 or newer is needed"
    if on_node test -d /run/systemd/system; then
        check_containerd
    else
        fault 'systemd does not run here: the service and its order before containerd are units of systemd'
    fi
    on_node test -e /sys/fs/cgroup/cgroup.controllers || on_node test -d /sys/fs/cgroup/memory ||
        fault 'no cgroup file system is mounted below /sys/fs/cgroup'
    on_node test -c /dev/net/tun || fault 'there is no /dev/net/tun: load the module tun'
    check_kvm "$effective"
    check_qemu "$effective"
    [ ${#faults[@]} -eq 0 ] || die 'This node cannot run Bulkhead; nothing was installed.' "${faults[@]}"
    say "the node can run Bulkhead (containerd $containerd_version, kernel $kernel)"
}

# ---- files

staged=()

# fresh_of TARGET: where its next content is written. systemd and containerd read no file of such a name.
fresh_of() { printf '%s\n' "$host${1%/*}/.${1##*/}.bulkhead-new"; }

# stage MODE SOURCE TARGET: the whole file beside its target, on disk, unless the target is the same already.
stage() {
    local target=$host$3 fresh
    fresh=$(fresh_of "$3")
    if cmp -s "$2" "$target" && [ "$(stat -c %a "$target")" = "$1" ]; then
        return
    fi
    mkdir -p "${target%/*}"
    cp "$2" "$fresh"
    chmod "$1" "$fresh"
    sync "$fresh"
    staged+=("$3")
}

# rename_staged: a program that runs keeps the file it was started from; whoever starts it next has the new one, whole.
rename_staged() {
    local target
    for target in "${staged[@]}"; do
        mv -fT "$(fresh_of "$target")" "$host$target"
        say "installed $target"
    done
    staged=()
}

# replaceable TARGET SOURCE NAME: whether the target may be written over. It may not once somebody has changed what was
# installed. NAME is of the list of all that was.
replaceable() {
    [ -e "$host$1" ] || return 0
    cmp -s "$2" "$host$1" || grep -qsxF "$(digest "$host$1")" "$memory/shipped-$3"
}

# stage_kept SOURCE TARGET NAME
stage_kept() {
    if replaceable "$2" "$1" "$3"; then
        grep -qsxF "$(digest "$1")" "$memory/shipped-$3" || digest "$1" >>"$memory/shipped-$3"
        stage 644 "$1" "$2"
    else
        say "kept $2, which was changed here; the shipped one is $2.new"
        stage 644 "$1" "$2.new"
    fi
}

# files: mode and path of everything in the payload that goes to the same path of the node. The service's program comes
# last, so that what it starts is there before it.
files() {
    local path
    (cd "$payload" && find ".$prefix" -type f) | sed 's/^\.//' | sort | while read -r path; do
        [ "$path" = "$prefix/bin/bulkhead-sandboxer" ] ||
            if [ -x "$payload$path" ]; then echo "755 $path"; else echo "644 $path"; fi
    done
    echo "755 $prefix/bin/bulkhead-sandboxer"
}

# list FILE: what is named there is what uninstall removes.
list() {
    cp "$1" "$memory/files.new"
    mv -f "$memory/files.new" "$memory/files"
}

lay_out() {
    local mode path old=$work/files.old
    # What is about to be written is listed first, so that a run that is cut off leaves nothing unknown.
    cat "$memory/files" >"$old" 2>/dev/null || true
    { files | cut -d ' ' -f 2; echo "$prefix/libexec/bulkhead/install.sh"; } | sort -u >"$work/files"
    sort -u "$old" "$work/files" >"$work/files.all"
    list "$work/files.all"

    # Of a run that was cut off.
    while read -r path; do fresh_of "$path"; done <"$memory/files" | xargs -d '\n' rm -f
    stage 755 "$0" "$prefix/libexec/bulkhead/install.sh"
    wanted_config >"$work/bulkhead.toml"
    stage_kept "$work/bulkhead.toml" "$config" settings
    while read -r mode path; do stage "$mode" "$payload$path" "$path"; done < <(files)
    rename_staged

    # Files of an earlier release that this one no longer has.
    comm -23 <(sort -u "$old") "$work/files" | while read -r path; do
        rm -f "$host$path"
        say "removed $path, which this release does not have"
    done
    list "$work/files"
}

# ---- daemons

applied() { [ "$(cat "$memory/$1" 2>/dev/null)" = "$2" ]; }

record() {
    printf '%s\n' "$2" >"$memory/$1.new"
    sync "$memory/$1.new"
    mv -f "$memory/$1.new" "$memory/$1"
}

active() { on_node systemctl is-active --quiet "$1"; }

# restart UNIT: systemctl answers when the service has said that it is ready.
restart() { on_node systemctl restart "$1" && active "$1"; }

last_words() { on_node systemctl status --no-pager --lines=10 "$1" 2>&1 || true; }

start_service() {
    local now
    now=$(digest "$host$units/$service" "$host$units/containerd.service.d/"*.conf)
    if ! applied units "$now"; then
        on_node systemctl daemon-reload
        on_node systemctl enable "$service"
        record units "$now"
    fi
    now=$(digest "$host$prefix/bin/bulkhead-sandboxer" "$host$units/$service" "$host$config")
    if applied sandboxer "$now"; then
        active "$service" || { say "$service does not run; starting it" && on_node systemctl start "$service"; } ||
            die "$(last_words "$service")" "$service does not start"
        return
    fi
    # The one that runs goes on with the settings that it has; one that is restarted with wrong ones does not come back.
    on_node "$prefix/bin/bulkhead-sandboxer" --check-config --config "$config" ||
        die "the settings in $config are wrong (see above): $service was not restarted"
    say "restarting $service; running pods are not touched"
    restart "$service" || die "$(last_words "$service")" "$service does not start"
    record sandboxer "$now"
}

# put_back: the drop-in as it was before this run.
put_back() {
    if [ -e "$work/drop-in.old" ]; then cp "$work/drop-in.old" "$host$drop_in"; else rm -f "$host$drop_in"; fi
}

# wanted_drop_in: the shipped one, or where the settings have profiles the one that has a runtime for each of them.
wanted_drop_in() {
    if grep -q '^[[:space:]]*\[profile\.' "$host$config"; then
        on_node "$prefix/bin/bulkhead-sandboxer" --print-containerd --config "$config" >"$work/drop-in" ||
            die "bulkhead-sandboxer does not say what containerd needs for the profiles in $config"
        printf '%s\n' "$work/drop-in"
    else
        printf '%s\n' "$payload$prefix/share/doc/bulkhead/examples/containerd/bulkhead.toml"
    fi
}

# tell_containerd comes last: containerd takes a sandboxer that is not there for the end of its pods.
tell_containerd() {
    local now wanted
    [ ! -e "$host$drop_in" ] || cp "$host$drop_in" "$work/drop-in.old"
    wanted=$(wanted_drop_in)
    stage_kept "$wanted" "$drop_in" drop-in
    rename_staged
    if ! containerd_has "$runtime_table"; then
        put_back
        die "$(tail -n 1 "$work/dump.stderr")" \
            "containerd does not take $drop_in: it was put back and containerd was not restarted"
    fi
    now=$(digest "$host$drop_in")
    if applied containerd "$now"; then
        return
    fi
    say "restarting $unit; running pods are not touched"
    if ! restart "$unit"; then
        last_words "$unit"
        put_back
        restart "$unit" || die "$unit starts neither with $drop_in nor without it: look at the node at once"
        die "$unit does not start with $drop_in (see above): the file was put back, and $unit runs again"
    fi
    record containerd "$now"
}

# ---- uninstall

# pods: the records of those that are on the node, stopped ones included. Prints nothing if there are none.
pods() {
    local directory
    directory=$(setting "$host$config" sandboxer state_dir 2>/dev/null || true)
    on_node find "${directory:-/var/lib/bulkhead}/sandboxes" -name '*.json' 2>/dev/null || true
}

refuse_pods() {
    local there
    there=$(pods | wc -l)
    [ "$there" -eq 0 ] || die "$1$there pods of Bulkhead are on this node: nothing was removed." \
        'Drain the node, delete pods of DaemonSets that have this RuntimeClass, and try again when kubelet has removed them.'
}

uninstall() {
    local path
    refuse_pods ''
    # Where a run was cut off between the two, the file is gone and containerd still knows the runtime.
    if [ -e "$host$drop_in" ] || [ -e "$memory/containerd" ]; then
        take_from_containerd
    fi
    rm -f "$memory/sandboxer" "$memory/units"
    on_node systemctl disable --now "$service" || say "$service could not be stopped: is it there?"
    if [ -e "$host$config" ] && ! grep -qsxF "$(digest "$host$config")" "$memory/shipped-settings"; then
        say "kept $config, which was changed here"
    else
        rm -f "$host$config"
    fi
    rm -f "$host$config.new" "$host$drop_in.new" "$(fresh_of "$config")" "$(fresh_of "$drop_in")"
    while read -r path; do
        printf '%s\n' "$host$path"
        fresh_of "$path"
    done <"$memory/files" | xargs -d '\n' rm -f
    on_node systemctl daemon-reload
    # The list goes last: a run that is repeated needs it.
    rm -rf "$memory"
    find "$host$prefix/share/bulkhead" "$host$prefix/share/doc/bulkhead" "$host$prefix/libexec/bulkhead" \
        "$host$units/containerd.service.d" -depth -type d -empty -delete 2>/dev/null || true
    say 'Bulkhead is removed; the directory of its records is left'
}

take_from_containerd() {
    if [ -e "$host$drop_in" ]; then
        cp "$host$drop_in" "$work/drop-in.old"
        replaceable "$drop_in" /dev/null drop-in || {
            cp "$host$drop_in" "$host$drop_in.removed"
            say "kept $drop_in.removed, because $drop_in was changed here"
        }
        rm -f "$host$drop_in"
    fi
    say "the runtime is taken from containerd; restarting $unit"
    restart "$unit" || die "$(last_words "$unit")" "$unit does not start"
    # From here on no pod can come. One that came before keeps its service.
    if [ -n "$(pods)" ]; then
        [ ! -e "$work/drop-in.old" ] || put_back
        restart "$unit" || die "$(last_words "$unit")" "$unit does not start"
        refuse_pods 'Pods came meanwhile. '
    fi
    rm -f "$memory/containerd"
}

# lock: on a directory that is there anyway, because a node that is refused stays as it is.
lock() {
    mkdir -p "$host$prefix"
    exec 9<"$host$prefix"
    flock --nonblock 9 || die 'another install.sh works on this node'
}

[ "$command" = uninstall ] || [ -x "$payload$prefix/bin/bulkhead-sandboxer" ] || [ -z "$command" ] ||
    die "$payload holds no $prefix/bin/bulkhead-sandboxer: make it with make install DESTDIR=$payload PREFIX=$prefix"
case $command in
    check)
        lock
        check_node
        ;;
    install)
        lock
        check_node
        mkdir -p "$memory"
        lay_out
        start_service
        tell_containerd
        say 'Bulkhead is installed'
        ;;
    uninstall)
        lock
        if [ -d "$memory" ]; then
            uninstall
        else
            say 'Bulkhead is not installed here'
        fi
        ;;
    *)
        sed -n '/^#!/d;/^#/!q;s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
