# Writes a newc archive (the kernel's initramfs format) to standard output, entry by entry.
#
# cpio(1) is not used: a device node would need root, and owner, time and inode numbers would
# come from the machine. Here they are fixed, so the same calls give the same bytes.

newc_inode=0

# newc_header NAME MODE NLINK SIZE MAJOR MINOR: mode in octal
newc_header() {
    newc_inode=$((newc_inode + 1))
    # magic, inode, mode, uid, gid, nlink, mtime, size, device, special device, name length, checksum
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        "$newc_inode" "$((8#$2))" 0 0 "$3" 0 "$4" 0 0 "$5" "$6" "$((${#1} + 1))" 0
    printf '%s\0' "$1"
    newc_pad $((110 + ${#1} + 1))
}

# newc_pad LENGTH: zeros up to the next multiple of four
newc_pad() {
    local missing=$(((4 - $1 % 4) % 4))
    [ "$missing" -eq 0 ] || printf '%*s' "$missing" '' | tr ' ' '\0'
}

# newc_dir NAME PERMISSIONS
newc_dir() {
    newc_header "$1" "004$2" 2 0 0 0
}

# newc_char NAME PERMISSIONS MAJOR MINOR
newc_char() {
    newc_header "$1" "002$2" 1 0 "$3" "$4"
}

# newc_file NAME PERMISSIONS SOURCE
newc_file() {
    local size
    size=$(stat -Lc %s "$3")
    newc_header "$1" "010$2" 1 "$size" 0 0
    cat "$3"
    newc_pad "$size"
}

# newc_link NAME TARGET
newc_link() {
    newc_header "$1" 0120777 1 "${#2}" 0 0
    printf '%s' "$2"
    newc_pad "${#2}"
}

newc_end() {
    newc_inode=-1
    newc_header 'TRAILER!!!' 000000 1 0 0 0
}
