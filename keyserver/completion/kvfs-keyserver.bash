# Completion of kvfs-keyserver for bash. Commands and options are taken from its --help, so that they
# are always those of the program that is installed.

# _kvfs_keyserver_words PROGRAM [NOUN]: the nouns, or a noun's verbs.
_kvfs_keyserver_words() {
    "$1" --help 2>/dev/null | if [[ $# -eq 1 ]]; then
        sed -nE 's/^  ([a-z-]+) .*/\1/p' | sort -u
    else
        sed -nE "s/^  $2 ([a-z-]+) .*/\1/p"
    fi
}

_kvfs_keyserver_value() {
    local words
    case $1 in
    --assurance) words='self-reported tpm tee' ;;
    --scope) words='publish deploy' ;;
    --step) words='add use drop' ;;
    --expires) words=never ;;
    --dir)
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -d -- "$2"))
        return
        ;;
    --cert | --key | --secrets)
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$2"))
        return
        ;;
    *) return ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$2"))
}

_kvfs_keyserver() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local program=${COMP_WORDS[0]} noun=${COMP_WORDS[1]} verbs
    COMPREPLY=()

    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "$(_kvfs_keyserver_words "$program") --help --version" -- "$cur"))
        return
    fi
    # `--name=value` arrives as three words: --name, =, value.
    if [[ $cur == = ]]; then
        _kvfs_keyserver_value "$prev" ''
        return
    elif [[ $prev == = ]]; then
        _kvfs_keyserver_value "${COMP_WORDS[COMP_CWORD - 2]}" "$cur"
        return
    fi
    verbs=$(_kvfs_keyserver_words "$program" "$noun")
    if [[ $cur == -* ]]; then
        [[ -n $verbs ]] && verbs=${COMP_WORDS[2]}
        COMPREPLY=($(compgen -W "$("$program" "$noun" $verbs --help 2>/dev/null |
            sed -nE 's/^ +(--[a-z][a-z-]*=?).*/\1/p')" -- "$cur"))
        [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    elif ((COMP_CWORD == 2)); then
        COMPREPLY=($(compgen -W "$verbs" -- "$cur"))
    fi
}

complete -F _kvfs_keyserver kvfs-keyserver
