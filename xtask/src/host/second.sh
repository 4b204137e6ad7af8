#!/bin/sh
# Second part of the emulated host's start, inside the writable root: brings up what programs expect, runs the
# command, and leaves its exit code in the control directory.
control=${0%/*}
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
. "$control/settings"
umount -l /mnt
date -s "@$now" >/dev/null
echo emulated-host >/proc/sys/kernel/hostname
ip link set lo up
cp -P "$control"/dev/* /dev/
ulimit -n 20000

# The two ports are the command's output, byte for byte. In a session of its own: when the command ends, what it left
# behind is no longer waited for.
setsid taskset -c "$cpus" sh "$control/command" </dev/null >"$(echo /dev/vport*p1)" 2>"$(echo /dev/vport*p2)"
code=$?
[ -z "$out" ] || umount "$out"
echo "$code" >"$control/code"
sync
# The end of PID 1 ends the machine: the kernel is told to restart at once, and QEMU not to.
exit 0
