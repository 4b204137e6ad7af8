//! From what the host asked for to what the kernel needs: user, environment, files to try.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io::{self, Read},
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::Path,
};

use sandbox_protocol::exec::{EnvChange, Spawn, SpawnFailure, SpawnFailureKind as Kind, User};

use super::spawn::{Ids, Plan, SpawnFault, Step};
use crate::{
    init::Surroundings,
    options::Options,
    users::{self, Account},
};

const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where programs are looked up when the command's environment has no `PATH`.
const FALLBACK_PATH: &[u8] = b"/bin:/usr/bin";

/// Runs a file that is executable but names no interpreter, as `execvp(3)` does.
const SHELL: &str = "/bin/sh";

/// Bytes of such a file looked at to tell a script from a program of another machine.
const SCRIPT_PROBE: u64 = 256;

type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

/// Works out a command's plan.
pub(super) fn plan<'a>(
    options: &Options,
    surroundings: &Surroundings,
    spawn: &Spawn,
    stdio: [BorrowedFd<'a>; 3],
) -> Result<Plan<'a>, SpawnFailure> {
    let Some(program) = spawn.argv.first().filter(|program| !program.is_empty()) else {
        return Err(refusal(Kind::BadRequest, "no program was named"));
    };
    let (account, identity) = who(options, surroundings, &spawn.user)?;
    let env = environment(&account, surroundings, &spawn.env)?;
    let programs = candidates(program.as_bytes(), env.get(&b"PATH"[..]).map(Vec::as_slice));
    let (cwd, cwd_optional) = match (&spawn.cwd, &surroundings.first_export) {
        (Some(cwd), _) if cwd.as_bytes().first() != Some(&b'/') => {
            return Err(refusal(
                Kind::BadCwd,
                "the working directory is not an absolute path",
            ));
        }
        (Some(cwd), _) => (cwd.as_bytes(), false),
        (None, Some(export)) => (export.as_slice(), false),
        (None, None) => (account.home.as_slice(), true),
    };
    Ok(Plan {
        stdio,
        programs: programs.into_iter().map(text).collect::<Result<_, _>>()?,
        argv: spawn
            .argv
            .iter()
            .map(|argument| text(argument.as_bytes().to_vec()))
            .collect::<Result<_, _>>()?,
        env: env
            .into_iter()
            .map(|(name, value)| text([name, value].join(&b'=')))
            .collect::<Result<_, _>>()?,
        cwd: text(cwd.to_vec())?,
        cwd_optional,
        identity,
    })
}

/// The plan to run a script without an interpreter line with the shell, if the fault was just that.
pub(super) fn with_shell(plan: &mut Plan, fault: &SpawnFault) -> bool {
    let no_format = fault.step == Step::Exec && fault.error.raw_os_error() == Some(libc::ENOEXEC);
    let Some(script) = plan.programs.get(fault.program).filter(|_| no_format).cloned() else {
        return false;
    };
    if !is_text(Path::new(std::ffi::OsStr::from_bytes(script.as_bytes()))).unwrap_or(false) {
        return false;
    }
    let Ok(shell) = CString::new(SHELL) else {
        return false;
    };
    let rest = plan.argv.split_off(plan.argv.len().min(1));
    plan.argv = [shell.clone(), script].into_iter().chain(rest).collect();
    plan.programs = vec![shell];
    true
}

/// What the host is told of a process that did not start.
pub(super) fn explain(plan: &Plan, spawn: &Spawn, fault: &SpawnFault) -> SpawnFailure {
    let errno = fault.error.raw_os_error();
    let kind = match (fault.step, errno) {
        (_, Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE)) => Kind::Exhausted,
        (Step::Cwd, _) => Kind::BadCwd,
        (Step::Identity, Some(libc::EPERM)) => Kind::PermissionDenied,
        (Step::Identity, _) => Kind::BadUser,
        (Step::Exec, Some(libc::ENOENT | libc::ENOTDIR)) => Kind::NotFound,
        (Step::Exec, Some(libc::EACCES | libc::EPERM)) => Kind::PermissionDenied,
        (Step::Exec, Some(libc::ENOEXEC | libc::ELIBBAD)) => Kind::NotExecutable,
        (Step::Exec, Some(libc::E2BIG)) => Kind::ArgumentsTooLong,
        _ => Kind::Other,
    };
    let subject = match fault.step {
        Step::Clone => "a new process".to_owned(),
        Step::Stdio => "standard streams".to_owned(),
        Step::Identity => "the command's user".to_owned(),
        Step::Cwd => format!("working directory {}", plan.cwd.to_string_lossy()),
        Step::Exec => spawn.argv.first().map_or_else(String::new, |name| {
            String::from_utf8_lossy(name.as_ref()).into_owned()
        }),
    };
    SpawnFailure {
        kind,
        errno,
        message: format!("{subject}: {}", fault.error),
    }
}

/// A failure that no system call reported.
pub(super) fn refusal(kind: Kind, message: impl Into<String>) -> SpawnFailure {
    SpawnFailure {
        kind,
        errno: None,
        message: message.into(),
    }
}

fn who(
    options: &Options,
    surroundings: &Surroundings,
    user: &User,
) -> Result<(Account, Option<Ids>), SpawnFailure> {
    let unreadable = |error: io::Error| refusal(Kind::BadUser, format!("/etc/passwd: {error}"));
    let own = rustix::process::geteuid().as_raw();
    let account = match user {
        // Without set-up the image's users are strangers': commands run as whoever runs the agent.
        User::Agent if !options.setup => by_uid(own).map_err(unreadable)?,
        User::Agent => users::find(|account| account.name == surroundings.user)
            .map_err(unreadable)?
            .ok_or_else(|| refusal(Kind::BadUser, "the sandbox's user is gone from /etc/passwd"))?,
        User::Root => by_uid(0).map_err(unreadable)?,
        User::Ids { uid, gid } => Account {
            gid: *gid,
            ..by_uid(*uid).map_err(unreadable)?
        },
    };
    if !options.setup && account.uid == own {
        return Ok((account, None));
    }
    let mut groups = users::groups_of(&account.name);
    if !groups.contains(&account.gid) {
        groups.push(account.gid);
    }
    let ids = Ids {
        uid: account.uid,
        gid: account.gid,
        groups,
    };
    Ok((account, Some(ids)))
}

/// The image's account of that number, or a stranger's.
fn by_uid(uid: u32) -> io::Result<Account> {
    Ok(
        users::find(|account| account.uid == uid)?.unwrap_or_else(|| Account {
            name: uid.to_string().into_bytes(),
            uid,
            gid: uid,
            home: if uid == 0 {
                b"/root".to_vec()
            } else {
                b"/".to_vec()
            },
            shell: b"/bin/sh".to_vec(),
        }),
    )
}

fn environment(
    account: &Account,
    surroundings: &Surroundings,
    changes: &[EnvChange],
) -> Result<Environment, SpawnFailure> {
    let own: [(&[u8], &[u8]); 7] = [
        (b"PATH", PATH),
        (b"HOME", &account.home),
        (b"USER", &account.name),
        (b"LOGNAME", &account.name),
        (b"SHELL", &account.shell),
        (b"LANG", b"C.UTF-8"),
        (b"TERM", b"xterm-256color"),
    ];
    let mut env: Environment = own.map(|(name, value)| (name.to_vec(), value.to_vec())).into();
    env.extend(surroundings.env.iter().cloned());
    for change in changes {
        match change {
            EnvChange::Clear => env.clear(),
            EnvChange::Set(name, _) if name.is_empty() || name.as_bytes().contains(&b'=') => {
                return Err(refusal(
                    Kind::BadRequest,
                    "an environment name is empty or has `=` in it",
                ));
            }
            EnvChange::Set(name, value) => {
                env.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
            }
            EnvChange::Unset(name) => {
                env.remove(name.as_bytes());
            }
        }
    }
    Ok(env)
}

fn candidates(program: &[u8], path: Option<&[u8]>) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let directories = path.unwrap_or(FALLBACK_PATH).split(|byte| *byte == b':');
    directories
        // An empty entry is the working directory.
        .map(|directory| {
            if directory.is_empty() {
                &b"."[..]
            } else {
                directory
            }
        })
        .map(|directory| [directory, program].join(&b'/'))
        .collect()
}

fn is_text(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    std::fs::File::open(path)?
        .take(SCRIPT_PROBE)
        .read_to_end(&mut start)?;
    Ok(!start.contains(&0))
}

fn text(bytes: Vec<u8>) -> Result<CString, SpawnFailure> {
    CString::new(bytes).map_err(|_| {
        refusal(
            Kind::BadRequest,
            "an argument, a path or an environment variable has a zero byte",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            name: b"a".into(),
            uid: 1,
            gid: 1,
            home: b"/h".into(),
            shell: b"/bin/sh".into(),
        }
    }

    #[test]
    fn commands_changes_win_over_the_sandboxs_environment() {
        let surroundings = Surroundings {
            user: b"a".into(),
            env: vec![
                (b"https_proxy".into(), b"p".into()),
                (b"TERM".into(), b"dumb".into()),
            ],
            first_export: None,
        };
        let env = environment(&account(), &surroundings, &[]).unwrap();
        assert_eq!(env[&b"TERM"[..]], b"dumb");
        assert_eq!(env[&b"HOME"[..]], b"/h");
        let changes = [
            EnvChange::Set("TERM".into(), "x".into()),
            EnvChange::Unset("https_proxy".into()),
            EnvChange::Set("EMPTY".into(), "".into()),
        ];
        let env = environment(&account(), &surroundings, &changes).unwrap();
        assert_eq!(env[&b"TERM"[..]], b"x");
        assert!(!env.contains_key(&b"https_proxy"[..]));
        let changes = [EnvChange::Clear, EnvChange::Set("A".into(), "=".into())];
        let env = environment(&account(), &surroundings, &changes).unwrap();
        assert_eq!(
            env.into_iter().collect::<Vec<_>>(),
            [(b"A".to_vec(), b"=".to_vec())]
        );
        for name in ["", "A=B"] {
            let failure = environment(
                &account(),
                &surroundings,
                &[EnvChange::Set(name.into(), "".into())],
            );
            assert_eq!(failure.unwrap_err().kind, Kind::BadRequest);
        }
    }

    #[test]
    fn programs_are_looked_up_as_a_shell_does() {
        assert_eq!(candidates(b"./a", Some(b"/bin")), [b"./a".to_vec()]);
        assert_eq!(candidates(b"a", Some(b"/x::/y")), [&b"/x/a"[..], b"./a", b"/y/a"]);
        assert_eq!(candidates(b"a", None), [&b"/bin/a"[..], b"/usr/bin/a"]);
    }
}
