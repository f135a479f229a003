# Boots one throwaway host: sh -c "$(cat boot.sh)" boot NAME IMAGE DIRECTORY
# Runs in a mount namespace of its own, so that the mounts go when the host goes.
set -eu
name=$1 image=$2 directory=$3

mkdir -p "$directory"
mount -t tmpfs -o mode=755 tmpfs "$directory"
mkdir "$directory/upper" "$directory/work" "$directory/root"
mount -t overlay -o "lowerdir=$image,upperdir=$directory/upper,workdir=$directory/work" overlay "$directory/root"

# systemd from 256 on refuses to boot on control groups of version 1, which some machines still mount.
export UNIFIED_CGROUP_HIERARCHY=1

# Without systemd outside there is nobody to ask for a scope: every host gets a control group of
# its own by hand, or two of them would share one and each take the other's processes for its own.
keep=
own_group() {
	[ ! -d /run/systemd/system ] || return 0
	keep=--keep-unit
	for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
		[ -e "$hierarchy/cgroup.procs" ] || continue
		mkdir -p "$hierarchy/$name"
		sh -c 'echo $PPID' >"$hierarchy/$name/cgroup.procs"
	done
}

# With --keep-unit it ends when the host restarts, with this status, and leaves the rest to us.
status=133
while [ "$status" -eq 133 ]; do
	status=0
	# shellcheck disable=SC2086 # empty or one option
	(own_group && exec systemd-nspawn --quiet --register=no $keep --machine="$name" --directory="$directory/root" \
		--network-namespace-path="/run/netns/$name" --boot) || status=$?
done
exit "$status"
