#!/bin/sh
# PID 1 of the emulated host, on its read-only view of the machine's root: puts a writable layer on top and changes
# into it. $control is a directory shared with the machine, written by `cargo xtask host`.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
control=${0%/*}

fail() {
    echo "emulated host: $1" >/dev/console
    exit 1
}

mount -t proc proc /proc
mount -t tmpfs -o mode=755,size=80% tmpfs /mnt || fail 'no tmpfs'
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work,xino=off" overlay /mnt/root || fail 'no overlay'
cd /mnt/root || fail 'no root'
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mkdir -p dev/pts dev/shm
mount -t devpts -o ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777,size=80% tmpfs tmp
mount -t cgroup2 cgroup2 sys/fs/cgroup
ln -sf /proc/self/fd dev/fd
ln -sf /proc/self/fd/0 dev/stdin
ln -sf /proc/self/fd/1 dev/stdout
ln -sf /proc/self/fd/2 dev/stderr
mkdir -p "./$control"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 control "./$control" || fail 'no control directory'
pivot_root . mnt || fail 'no new root'
exec chroot . /bin/sh "$control/second" <dev/console >dev/console 2>&1
