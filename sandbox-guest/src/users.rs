//! Users and groups as the image's own files tell them. A static program must not ask the C library,
//! which would load the image's name service modules.

use std::{io, path::Path};

/// Longest account file read, and more than any image has. Bounds the agent's memory.
const MAX_FILE: u64 = 4 << 20;

/// Most supplementary groups taken; the kernel's own limit is 65,536.
const MAX_GROUPS: usize = 256;

/// A line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: Vec<u8>,
    pub(crate) shell: Vec<u8>,
}

/// The first account that `wanted` accepts.
pub(crate) fn find(wanted: impl Fn(&Account) -> bool) -> io::Result<Option<Account>> {
    let text = read("/etc/passwd")?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse_account)
        .find(wanted))
}

/// Groups in which `/etc/group` lists `name`. None if there is no such file.
pub(crate) fn groups_of(name: &[u8]) -> Vec<u32> {
    let text = read("/etc/group").unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| parse_membership(line, name))
        .take(MAX_GROUPS)
        .collect()
}

fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn parse_account(line: &[u8]) -> Option<Account> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
    let home = fields.nth(1)?;
    let shell = fields
        .next()
        .filter(|shell| !shell.is_empty())
        .unwrap_or(b"/bin/sh");
    Some(Account {
        name: name.to_vec(),
        uid,
        gid,
        home: home.to_vec(),
        shell: shell.to_vec(),
    })
}

fn parse_membership(line: &[u8], name: &[u8]) -> Option<u32> {
    let mut fields = line.split(|byte| *byte == b':');
    let gid = number(fields.nth(2)?)?;
    fields
        .next()?
        .split(|byte| *byte == b',')
        .any(|member| member == name)
        .then_some(gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_lines_are_read_and_broken_ones_skipped() {
        let account = parse_account(b"agent:x:1000:1001:A,,:/home/agent:/bin/bash").unwrap();
        assert_eq!((account.uid, account.gid), (1000, 1001));
        assert_eq!(
            (&account.home[..], &account.shell[..]),
            (&b"/home/agent"[..], &b"/bin/bash"[..])
        );
        assert_eq!(parse_account(b"a:x:1:1::/:").unwrap().shell, b"/bin/sh");
        for broken in [
            &b""[..],
            b"a",
            b"a:x:1",
            b":x:1:1::/:",
            b"a:x:-1:1::/:",
            b"# comment",
        ] {
            assert_eq!(parse_account(broken), None);
        }
    }

    #[test]
    fn membership_is_by_whole_name() {
        assert_eq!(parse_membership(b"docker:x:999:bob,agent", b"agent"), Some(999));
        assert_eq!(parse_membership(b"docker:x:999:agents", b"agent"), None);
        assert_eq!(parse_membership(b"docker:x:999:", b""), Some(999));
        assert_eq!(parse_membership(b"docker:x", b"agent"), None);
    }
}
