#!/bin/sh
# PID 1 of the emulated host, on its read-only view of the machine's root: puts a writable layer on top and changes
# into it. The folder of this file is shared with the machine and written by `cargo xtask host`. Few processes are
# started, since each takes a tenth of a second here.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
control=${0%/*}

fail() {
    echo "emulated host: $1" >/dev/console
    exit 1
}

mount -t tmpfs -o mode=755,size=80% tmpfs /mnt || fail 'no tmpfs'
mkdir /mnt/upper /mnt/work /mnt/root || fail 'no directories'
mount -t overlay -o "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work,xino=off" overlay /mnt/root || fail 'no overlay'
cd /mnt/root || fail 'no root'
mount -n -a -T "$control/fstab" || fail 'not everything could be mounted'
pivot_root . mnt || fail 'no new root'
exec chroot . /bin/sh "$control/second" <dev/console >dev/console 2>&1
