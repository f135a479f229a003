#!/bin/sh
# Brings a generated service to this template's last commit, by a three-way merge: what the commit that it was generated
# from generates, what the last one does, and what the service has become. The result is for the owner to look at and
# to commit.
#
#   tests/update.sh SERVICE    updates the service in that folder; where parts conflict, the exit status is 1
#
# CHECK=1 changes nothing: the exit status is 1 where there is something newer. BASE=COMMIT says what the service was
# generated from, where that cannot be found. Where the exit status is 2, the reason is told and nothing has changed.
set -eu
# Who calls may be a hook of git.
# shellcheck disable=SC2046 # several variables
unset $(git rev-parse --local-env-vars)
# cargo-generate asks for it, to fill in an author that this template does not use.
export USER="${USER:-nobody}"

template=$(cd "$(dirname "$0")/.." && pwd)
service=${1-.}

fail() {
    echo "update: $*" >&2
    exit 2
}

ours() { git -C "$service" "$@"; }
theirs() { git -C "$template" "$@"; }

# A value of the stamp in a Cargo.toml: stamp KEY.
stamp() { sed -n '/^\[package\.metadata\.hitless\]/,/^\[/ s/^'"$1"' = "\(.*\)"/\1/p'; }
version_of() { theirs show "$1:Cargo.toml" | stamp version; }
called() { echo "$(version_of "$1") ($(theirs rev-parse --short "$1"))"; }

# The commit whose files are the service's: of all, that which differs in the fewest. Those of the service's first commit
# tell most, unless the service was updated since.
nearest() {
    first=$(ours log --no-show-signature --format=%H --diff-filter=A -- Cargo.toml | tail -n 1)
    [ "$(ours show "${first:=HEAD}:./Cargo.toml" | stamp version)" = "$version" ] || first=HEAD
    tree=$(ours rev-parse "$first:./")
    # From here on the template's git sees the service's files, too.
    GIT_ALTERNATE_OBJECT_DIRECTORIES=$(ours rev-parse --path-format=absolute --git-path objects)
    export GIT_ALTERNATE_OBJECT_DIRECTORIES

    # Files that differ or that only the service has, files that only the commit has, the commit; the newest first.
    theirs log --no-show-signature --format='%T %H' | while read -r tree_and_commit; do
        # With a database it is of a commit that has one.
        [ "$database" = none ] || theirs cat-file -e "${tree_and_commit#* }:tests/$database" 2>/dev/null || continue
        echo "$tree_and_commit"
    done >"$work/commits"
    awk -v tree="$tree" '!seen[$1]++ { print $1, tree }' "$work/commits" |
        theirs diff-tree -r --no-renames --name-status --stdin |
        awk '
            function tell() { if (which) print others, missing, commit[which] }
            NR == FNR { if (!($1 in commit)) commit[$1] = $2; next }
            /^[MAT]\t/ { others++; next }
            /^D\t/ { missing++; next }
            { tell(); which = $1; others = missing = 0 }
            END { tell() }
        ' "$work/commits" - | sort -s -n -k 1,1 -k 2,2 >"$work/near"

    # Some commits differ only in files that are rendered, or that cargo writes: then it is lines that are counted.
    awk 'NR == 1 { least = $1 " " $2 } $1 " " $2 == least { print $3 }' "$work/near" |
        while read -r commit; do
            for pair in Cargo.toml:Cargo.toml README.md.liquid:README.md Cargo.lock:Cargo.lock $(of_database "$commit"); do
                theirs diff --no-ext-diff --numstat "$commit:${pair%:*}" "$tree:${pair#*:}" 2>/dev/null || true
            done | awk -v commit="$commit" '{ lines += $1 + $2 } END { print lines + 0, commit }'
        done | sort -s -n -k 1,1 >"$work/nearest"
    base=$(sed 's/.* //; q' "$work/nearest")

    differ=$(theirs diff-tree -r --no-renames --name-only --diff-filter=M "$base^{tree}" "$tree" | wc -l)
    missing=$(theirs diff-tree -r --no-renames --name-only --diff-filter=D "$base^{tree}" "$tree" | wc -l)
    both=$(($(theirs ls-tree -r --name-only "$base" | wc -l) - missing))
    [ $((2 * differ)) -lt "$both" ] ||
        unknown "the nearest commit, $(called "$base"), has $((both - differ)) of the $both files that both have"
    [ "$(version_of "$base")" = "$version" ] ||
        unknown "its stamp says $version, and the nearest commit is $(called "$base")"
    unset GIT_ALTERNATE_OBJECT_DIRECTORIES
}

# What a commit has for a service with a database, and where that is there.
of_database() {
    [ "$database" = none ] || theirs ls-tree -r --name-only "$1" "tests/$database/" | sed "s|^tests/$database/\(.*\)|&:\1|"
}

# What it was generated from is not to be found: unknown REASON.
unknown() {
    [ "$(theirs rev-parse --is-shallow-repository)" = false ] || set -- "$1; the template's history is not all there"
    fail "what $name was generated from cannot be told: $1. BASE=COMMIT says it"
}

# What a commit does not give to a service: what cargo-generate.toml leaves out, its hooks, the README of the template.
never_generated() {
    theirs show "$1:cargo-generate.toml" | sed -n '/^ignore = \[/,/^\]/p; /^\(init\|pre\|post\) = /p' | grep -o '"[^"]*"' |
        tr -d '"' | sed 's|^/||' | grep -vx "tests/$database"
    echo README.md
}

is_newest() {
    [ "$base" != "$newest" ] || return 0
    never_generated "$newest" >"$work/never"
    set -- .
    while read -r path; do set -- "$@" ":(exclude)$path"; done <"$work/never"
    theirs diff-tree -r --quiet "$base" "$newest" -- "$@"
}

# What a commit generates, in the folder where it lies in the service's repository: render COMMIT FOLDER STAMP.
render() {
    rm -rf "$work/template"
    mkdir -p "$work/template" "$2/$prefix"
    theirs archive "$1" | tar --extract --directory "$work/template"
    # The service has its name, whatever that commit thinks of it.
    [ ! -e "$work/template/tests/template-name.rhai" ] || : >"$work/template/tests/template-name.rhai"
    (cd "$2/$prefix" && cargo generate --init --no-workspace --vcs none --path "$work/template" --name "$name" \
        --define database="$database") \
        >"$work/said" 2>&1 </dev/null || fail "$(called "$1") generates nothing: $(cat "$work/said")"
    # The service's own in both: lines of two lock files merge badly, and cargo brings it up to date.
    ours show HEAD:./Cargo.lock >"$2/${prefix}Cargo.lock" 2>/dev/null || rm -f "$2/${prefix}Cargo.lock"
    [ -z "$3" ] ||
        sed -i '/^\[package\.metadata\.hitless\]/,/^\[/ s/^version = .*/&\ncommit = "'"$3"'"/' "$2/${prefix}Cargo.toml"
}

# A commit, which no branch has, of the service's repository with that in place of the service:
# commit_of FOLDER MESSAGE [PARENT].
commit_of() {
    (
        export GIT_DIR="$git_dir" GIT_WORK_TREE="$1" GIT_INDEX_FILE="$work/index"
        export GIT_AUTHOR_NAME=hitless GIT_AUTHOR_EMAIL=hitless GIT_COMMITTER_NAME=hitless GIT_COMMITTER_EMAIL=hitless
        cd "$1"
        git read-tree HEAD
        git add --all --force -- "./$prefix" 2>"$work/said" || fail "$(cat "$work/said")"
        git commit-tree ${3:+-p "$3"} -m "$2" "$(git write-tree)"
    )
}

# Refuses to overwrite what git could not bring back: overwrites_nothing OLD NEW.
overwrites_nothing() {
    git -C "$top" diff-tree -r --no-renames --name-only --diff-filter=d "$1" "$2" | while read -r path; do
        { [ ! -e "$top/$path" ] && [ ! -L "$top/$path" ]; } || git -C "$top" cat-file -e "HEAD:$path" 2>/dev/null || echo "$path"
    done >"$work/untracked"
    [ ! -s "$work/untracked" ] || fail "it would overwrite what is not committed: $(tr '\n' ' ' <"$work/untracked")"
}

# What the changelog says of the versions after the service's.
changes() {
    theirs show "$newest:src/hitless/CHANGELOG.md" 2>/dev/null | awk -v version="$(version_of "$base")" '
        /^## / { new = $2 != version; if (!new) exit }
        new
    '
}

present=$(ours show HEAD:./Cargo.toml 2>/dev/null) ||
    fail "$service is not a service in a git repository, or was never committed"
git_dir=$(ours rev-parse --absolute-git-dir)
top=$(ours rev-parse --show-toplevel)
prefix=$(ours rev-parse --show-prefix)
name=$(echo "$present" | sed -n '/^name = "\(.*\)"/ { s//\1/p; q; }')
version=$(echo "$present" | stamp version)
[ -n "$version" ] || fail "$name is not generated from this template: its Cargo.toml has no [package.metadata.hitless]"
stamped=$(echo "$present" | stamp commit)
database=$(echo "$present" | sed -n '/^\[package\.metadata\.hitless\.with\]/,/^\[/ s/^database = "\(.*\)"/\1/p')
database=${database:-none}
newest=$(theirs rev-parse HEAD)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 2' HUP INT TERM

if [ -n "${BASE-}" ]; then
    base=$(theirs rev-parse --verify --quiet "$BASE^{commit}") || fail "the template has no commit $BASE"
elif [ -n "$stamped" ]; then
    base=$(theirs rev-parse --verify --quiet "$stamped^{commit}") ||
        unknown "its stamp names the commit $stamped, which this template does not have"
else
    nearest
fi

if is_newest; then
    echo "$name is up to date: hitless $(called "$base")"
    exit
fi
if [ -n "${CHECK-}" ]; then
    echo "$name is hitless $(called "$base"), and there is $(called "$newest")"
    exit 1
fi

[ -z "$(git -C "$top" status --porcelain --untracked-files=no)" ] || fail "in $top something is changed: commit that first"
cargo generate --version >/dev/null 2>&1 || fail "cargo-generate is missing: cargo install cargo-generate"
render "$base" "$work/old" "$stamped"
render "$newest" "$work/new" "$newest"
old=$(commit_of "$work/old" "hitless $(called "$base")")
new=$(commit_of "$work/new" "Update to hitless $(called "$newest")" "$old")
overwrites_nothing "$old" "$new"

status=0
# What the owner has added stays where it is.
LC_ALL=C git -C "$top" -c merge.renames=true -c merge.directoryRenames=false cherry-pick --no-commit "$new" \
    >"$work/said" 2>&1 || status=1
[ "$status" -eq 0 ] || [ -n "$(git -C "$top" ls-files --unmerged)" ] || fail "git says: $(cat "$work/said")"
changes
grep '^CONFLICT' "$work/said" || true
cat <<END
$name: hitless $(called "$base") -> $(called "$newest"). Nothing is committed: "git status" tells what is new,
"git reset --hard" takes it back. The next build brings Cargo.lock up to date.
END
exit $status
