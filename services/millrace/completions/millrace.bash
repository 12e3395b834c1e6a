# Completion of millrace's command line for bash: source <(millrace completion bash)
_millrace() {
    # bash takes "--flag=value" and "http://host:1" apart, at = and :
    local words=() n=-1 glue="" i w
    for ((i = 1; i <= COMP_CWORD; i++)); do
        w="${COMP_WORDS[i]}"
        if [[ $n -ge 0 && ( $w == "=" || $w == ":" ) ]]; then
            words[n]+="$w"
            glue=1
        elif [[ -n $glue ]]; then
            words[n]+="$w"
            glue=""
        else
            n=$((n + 1))
            words[n]="$w"
        fi
    done
    local cur="${words[n]}" IFS=$'\n' line
    local before="${cur%"${cur##*[=:]}"}"
    COMPREPLY=()
    for line in $("${COMP_WORDS[0]}" complete -- "${words[@]}" 2>/dev/null); do
        case "$line" in
        :files) compopt -o filenames; COMPREPLY=($(compgen -f -- "${cur#"$before"}")); return ;;
        :dirs) compopt -o filenames; COMPREPLY=($(compgen -d -- "${cur#"$before"}")); return ;;
        *[=,]) compopt -o nospace ;;
        esac
        COMPREPLY+=("${line#"$before"}")
    done
}
complete -F _millrace millrace
