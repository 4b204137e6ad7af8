#!/bin/sh
# Second part of the emulated host's start, inside the writable root: brings up what programs expect, runs the
# command, and leaves its exit code in the control directory.
control=${0%/*}
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
umount -l /mnt
. "$control/settings"
date -s "@$now" >/dev/null
hostname emulated-host 2>/dev/null || echo emulated-host >/proc/sys/kernel/hostname
ip link set lo up 2>/dev/null
ulimit -n 20000
if [ -n "$out" ]; then
    mkdir -p "$out"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out "$out" || echo "emulated host: no $out"
fi

# The two ports are the command's output, byte for byte. In a session of its own: when the command ends, what it left behind is no longer waited for.
setsid sh "$control/command" </dev/null >"$(echo /dev/vport*p1)" 2>"$(echo /dev/vport*p2)"
code=$?
[ -n "$out" ] && umount "$out"
echo "$code" >"$control/code.new"
mv "$control/code.new" "$control/code"
sync
# The end of PID 1 ends the machine: the kernel is told to restart at once, and QEMU not to.
exit 0
