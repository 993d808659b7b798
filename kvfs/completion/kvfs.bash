# Completion of kvfs for bash. Options are taken from `kvfs COMMAND --help`, so that they are always
# those of the kvfs that is installed.

_kvfs_commands='audit encrypt guard inspect keygen login logout measure mount publish rekey reload
rewrap seal status umount verify warm'

# Mount points of kvfs, with octal escapes undone.
_kvfs_mounts() {
    local line fields i
    while read -r line; do
        read -ra fields <<<"$line"
        for ((i = 6; i < ${#fields[@]}; i++)); do
            [[ ${fields[i]} == - ]] || continue
            [[ ${fields[i + 1]} == fuse.kvfs ]] && printf '%b\n' "${fields[4]//\\/\\0}"
            break
        done
    done </proc/self/mountinfo 2>/dev/null
}

# Fills COMPREPLY with the lines of stdin that begin with what was typed.
_kvfs_from_lines() {
    local line
    while IFS= read -r line; do
        [[ $line == "$1"* ]] && COMPREPLY+=("$(printf '%q' "$line")")
    done
}

_kvfs_files() {
    compopt -o filenames 2>/dev/null
    local line
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(compgen "$1" -- "$2")
    return 0
}

# _kvfs_value COMMAND OPTION TYPED: completes the value of an option; 1 if it takes none that is known.
_kvfs_value() {
    local words
    case "$1 $2" in
    *' --alg') words='aes256gcm aes128gcm chacha20poly1305' ;;
    *' --format-version') words='1 2' ;;
    'mount --plain') words='safe all none' ;;
    'mount --manifest') words='auto require' ;;
    'mount --update') words='pin follow' ;;
    'mount --cache') words='auto page resident direct' ;;
    'mount --crypto') words='auto openssl ipsec' ;;
    'guard -p' | 'guard --profile' | 'mount --guard') words='strict drift off' ;;
    *' -K' | *' --key-dir' | 'mount --state-dir') _kvfs_files -d "$3" && return ;;
    'mount -o') return 1 ;;
    *' -k' | *' --key' | *' --to-key' | *' -o' | *' --output' | *' --policy' | *' --remote-policy' | \
        *' --ca' | *' --api-key' | 'mount --deploy-key' | 'mount --mounter' | 'mount --audit')
        _kvfs_files -f "$3" && return
        ;;
    *) return 1 ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$3"))
}

# check, explain and digest, and what the latter two are about.
_kvfs_guard() {
    if ((COMP_CWORD == 2)); then
        COMPREPLY=($(compgen -W 'check explain digest' -- "$1"))
    elif [[ ${COMP_WORDS[2]} == explain ]]; then
        COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" guard explain 2>/dev/null |
            sed -nE 's/^([a-z][a-z-]*) .*/\1/p')" -- "$1"))
    elif [[ ${COMP_WORDS[2]} == digest ]]; then
        _kvfs_files -f "$1"
    fi
}

_kvfs() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} kvfs=${COMP_WORDS[0]}
    COMPREPLY=()

    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "$_kvfs_commands --help --version" -- "$cur"))
        return
    fi
    # `--name=value` arrives as three words: --name, =, value.
    if [[ $cur == = ]]; then
        _kvfs_value "$command" "$prev" '' && return
    elif [[ $prev == = ]]; then
        _kvfs_value "$command" "${COMP_WORDS[COMP_CWORD - 2]}" "$cur" && return
    elif [[ $prev == -* ]]; then
        _kvfs_value "$command" "$prev" "$cur" && return
    fi
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$("$kvfs" "$command" --help 2>/dev/null |
            sed -nE 's/^ +(-., )?(--[a-z][a-z-]*=?).*/\2/p')" -- "$cur"))
        [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
        return
    fi
    case $command in
    umount | status | reload | seal | warm) _kvfs_from_lines "$cur" < <(_kvfs_mounts) ;;
    measure | login | logout) ;;
    audit)
        if ((COMP_CWORD == 2)); then
            COMPREPLY=(verify)
        else
            _kvfs_files -f "$cur"
        fi
        ;;
    guard) _kvfs_guard "$cur" ;;
    keygen | publish) _kvfs_files -d "$cur" ;;
    *) _kvfs_files -f "$cur" ;;
    esac
}

complete -F _kvfs kvfs
