# The commands of README.md: every line of a sh block that begins with haste-run (or build/.../haste-run) must be accepted
# with --dry-run added, from the root of the repository.
. "$(dirname "$0")/lib.sh"
readme=$SOURCE_ROOT/README.md
if [ ! -f "$readme" ]; then
    echo "skipped: no README.md"
    exit 77
fi
awk '/^```/ { inside = !inside && /^```(sh|bash|console)$/; next }
     inside { sub(/^\$ /, ""); if (joined != "") { $0 = joined $0; joined = "" }
              if (/\\$/) { joined = substr($0, 1, length($0) - 1); next }
              if (/^([^ ]*\/)?haste-run /) print }' "$readme" >commands
test -s commands || fail "README.md shows no haste-run command"
while IFS= read -r line; do
    case $line in *[\|\>\<\;\&\`]* | *'$('*) fail "too clever for this test: $line" ;; esac
    rest=${line#*haste-run}
    (cd "$SOURCE_ROOT" && eval "\"\$HASTE_RUN\" $rest --dry-run") >out 2>err || fail "README.md: $line"
done <commands
echo "$(wc -l <commands) commands"
