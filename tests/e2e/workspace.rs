//! The workspace: one view for host and guest, with the semantics that programs rely on, and no way out of it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::fixture::{run, sh, sh_ok, shared};

#[test]
fn changes_are_seen_at_once_on_both_sides() {
    run(async {
        let workspace = &shared().await.workspace;
        for round in 0..3 {
            std::fs::write(workspace.join("ping"), format!("host {round}")).unwrap();
            assert_eq!(sh_ok("cat ping").await, format!("host {round}"));
            sh_ok(&format!(
                "echo guest {round} > pong; mkdir -p d{round}/e; mv pong d{round}/e/pong"
            ))
            .await;
            let pong = workspace.join(format!("d{round}/e/pong"));
            assert_eq!(std::fs::read_to_string(pong).unwrap(), format!("guest {round}\n"));
            std::fs::remove_dir_all(workspace.join(format!("d{round}"))).unwrap();
            assert!(!sh(&format!("test -e d{round}")).await.status.success());
        }
    });
}

#[test]
fn files_made_inside_belong_to_the_host_user_and_those_of_the_host_to_the_agent() {
    run(async {
        let workspace = &shared().await.workspace;
        sh_ok("echo x > owned; chmod 640 owned; sudo sh -c 'echo y > owned-by-root'").await;
        let me = std::fs::metadata(workspace).unwrap().uid();
        for name in ["owned", "owned-by-root"] {
            assert_eq!(
                std::fs::metadata(workspace.join(name)).unwrap().uid(),
                me,
                "{name}"
            );
        }
        let mode = std::fs::metadata(workspace.join("owned"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(sh_ok("stat -c %U owned .").await, "agent\nagent\n");
    });
}

#[test]
fn git_venv_and_sqlite_work() {
    run(async {
        sh_ok(
            "set -e; rm -rf repo; mkdir repo; cd repo; git init -q -b main; git config user.email a@b; \
             git config user.name a; seq 1000 > f; git add f; git commit -qm one; seq 2000 > f; \
             git commit -qam two; git checkout -q HEAD~1; git fsck --strict 2>&1; test $(wc -l < f) = 1000",
        )
        .await;
        let log = std::process::Command::new("git")
            .args(["-c", "safe.directory=*", "log", "--format=%s", "main"])
            .current_dir(shared().await.workspace.join("repo"))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&log.stdout),
            "two\none\n",
            "the host sees the repository"
        );
        sh_ok("set -e; rm -rf venv; python3 -m venv --without-pip venv; venv/bin/python -c 'import sys; assert sys.prefix != sys.base_prefix'")
            .await;
        sh_ok(
            "python3 -c \"
import sqlite3
for mode in ('delete', 'wal'):
    d = sqlite3.connect('db-' + mode); d.execute('pragma journal_mode=' + mode)
    d.execute('create table t (n)'); d.executemany('insert into t values (?)', [(i,) for i in range(500)])
    d.commit(); d.execute('delete from t where n % 2'); d.commit()
    assert d.execute('select count(*) from t').fetchone() == (250,)
    assert d.execute('pragma integrity_check').fetchone() == ('ok',)
\"",
        )
        .await;
    });
}

#[test]
fn symlinks_work_and_none_leads_out() {
    run(async {
        let shared = shared().await;
        let outside = shared
            .workspace
            .with_file_name(format!("outside-{}", std::process::id()));
        std::fs::write(&outside, "outside the workspace").unwrap();
        symlink(&outside, shared.workspace.join("absolute-out")).unwrap();
        symlink(
            "../".repeat(12) + outside.to_str().unwrap(),
            shared.workspace.join("relative-out"),
        )
        .unwrap();
        std::fs::write(shared.workspace.join("inside"), "inside").unwrap();
        symlink("inside", shared.workspace.join("relative-in")).unwrap();
        symlink(
            shared.workspace.join("inside"),
            shared.workspace.join("absolute-in"),
        )
        .unwrap();
        assert_eq!(sh_ok("cat relative-in absolute-in").await, "insideinside");
        for link in ["absolute-out", "relative-out"] {
            let output = sh(&format!("cat {link}; sudo cat {link}")).await;
            assert!(!output.status.success() && output.stdout.is_empty(), "{link}");
        }
        // A link planted by the guest changes nothing outside either.
        sh("ln -sfn /etc planted; echo x > planted/passwd; ln -sfn / root; ls root/work").await;
        assert!(!std::fs::read_to_string("/etc/passwd").unwrap().starts_with("x\n"));
        std::fs::remove_file(outside).unwrap();
    });
}

#[test]
fn open_files_survive_rename_and_removal() {
    run(async {
        let said = sh_ok(
            "exec 3<>kept; echo one >&3; rm kept; echo two >&3; \
             python3 -c \"import os; os.lseek(3, 0, 0); print(os.read(3, 100))\"; \
             echo a > old; exec 4<old; echo b > new; mv new old; cat <&4; cat old",
        )
        .await;
        assert_eq!(said, "b'one\\ntwo\\n'\na\nb\n");
    });
}

#[test]
fn sparse_files_stay_sparse_and_large_offsets_work() {
    run(async {
        sh_ok(
            "truncate -s 5G sparse; printf end | dd of=sparse bs=1 seek=5368709120 conv=notrunc 2>/dev/null",
        )
        .await;
        let file = std::fs::metadata(shared().await.workspace.join("sparse")).unwrap();
        assert_eq!(file.len(), 5_368_709_123);
        assert!(file.blocks() * 512 < 1 << 20, "{} blocks", file.blocks());
    });
}

#[test]
fn device_nodes_and_setuid_bits_do_not_reach_the_host() {
    run(async {
        let workspace = &shared().await.workspace;
        assert!(!sh("sudo mknod disk b 254 0").await.status.success());
        sh("cp /bin/true tool; chmod 4755 tool; sudo chmod 4755 tool; sudo chown root tool").await;
        let mode = std::fs::metadata(workspace.join("tool"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7000, 0, "{mode:o}");
        assert!(!workspace.join("disk").exists());
    });
}

#[test]
fn the_private_layer_takes_writes_outside_the_workspace() {
    run(async {
        assert_eq!(
            sh_ok("sudo sh -c 'echo layered > /opt/file'; cat /opt/file; echo x > /tmp/y; cat /tmp/y").await,
            "layered\nx\n"
        );
    });
}
