#compdef millrace
# Completion of millrace's command line for zsh: source <(millrace completion zsh)
_millrace() {
    local line
    local -a lines open closed
    lines=("${(@f)$("${words[1]}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    for line in $lines; do
        case "$line" in
        :files) compset -P '*='; _files; return ;;
        :dirs) compset -P '*='; _files -/; return ;;
        *[=,]) open+=("$line") ;;
        ?*) closed+=("$line") ;;
        esac
    done
    (( $#open )) && compadd -S '' -- $open
    (( $#closed )) && compadd -- $closed
}
compdef _millrace millrace
