# Completion of millrace's command line for fish: millrace completion fish | source
function __millrace_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in ($words[1] complete -- $words[2..-1] $current 2>/dev/null)
        switch $line
            case :files :dirs
                set -l flag (string match -r '^--[^=]*=' -- $current)
                for path in (__fish_complete_path (string replace -- "$flag" '' $current))
                    echo "$flag$path"
                end
            case '*'
                echo $line
        end
    end
end
complete -c millrace -f -a '(__millrace_complete)'
