//! After an authenticated call, the key is nowhere in the guest's memory, its disk layer or the VMM process.
//!
//! The search proves that it can find: a guest process plants a marker in memory and on disk and frees both,
//! and the same search must find it in the same places.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use aho_corasick::AhoCorasick;

use crate::fixture::{API, api_rules, api_service, fresh_directory, run, vmm_of};
use sandbox::{Sandbox, sources};
use stand_in::StandIn;

/// What is looked for, in every form that a program could keep it in.
struct Needles {
    names: Vec<String>,
    search: AhoCorasick,
    longest: usize,
}

impl Needles {
    fn new(secret: &str) -> Self {
        let bytes = secret.as_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let percent: String = bytes
            .iter()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    char::from(*byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect();
        let mut forms = vec![
            ("plain".to_owned(), bytes.to_vec()),
            ("hex".to_owned(), hex.clone().into_bytes()),
            ("upper hex".to_owned(), hex.to_uppercase().into_bytes()),
            ("percent-encoded".to_owned(), percent.into_bytes()),
        ];
        // Base64 looks different at each of three offsets; the middle part depends on the secret alone.
        for offset in 0..3 {
            let shifted: Vec<u8> = std::iter::repeat_n(b'x', offset)
                .chain(bytes.iter().copied())
                .collect();
            let text = base64(&shifted);
            let whole = text.len() - 4;
            forms.push((
                format!("base64 at offset {offset}"),
                text.as_bytes()[4..whole].to_vec(),
            ));
        }
        let (names, forms): (Vec<_>, Vec<_>) = forms.into_iter().unzip();
        let longest = forms.iter().map(Vec::len).max().unwrap();
        Self {
            names,
            search: AhoCorasick::new(forms).unwrap(),
            longest,
        }
    }

    /// Names of the forms found in all that `read` gives.
    fn found_in(&self, mut read: impl FnMut(&mut [u8]) -> usize) -> Vec<String> {
        let mut window = vec![0; 1 << 20];
        let mut kept = 0;
        let mut found = Vec::new();
        loop {
            let count = read(&mut window[kept..]);
            if count == 0 {
                return found;
            }
            let filled = kept + count;
            for matched in self.search.find_overlapping_iter(&window[..filled]) {
                let name = &self.names[matched.pattern().as_usize()];
                if !found.contains(name) {
                    found.push(name.clone());
                }
            }
            // A form may lie across two reads.
            kept = filled.min(self.longest - 1);
            window.copy_within(filled - kept..filled, 0);
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let group = chunk
                .iter()
                .fold(0u32, |group, byte| group << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            (0..=chunk.len()).map(move |i| char::from(ALPHABET[(group >> (18 - 6 * i) & 63) as usize]))
        })
        .collect()
}

/// Searches all readable memory of a process, which for a VMM includes its guest's.
fn search_memory(pid: u32, needles: &Needles) -> (u64, Vec<String>) {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let (mut searched, mut found) = (0, Vec::new());
    for line in maps
        .lines()
        .filter(|line| !line.contains("[vvar") && !line.contains("[vsyscall"))
    {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (
            u64::from_str_radix(start, 16).unwrap(),
            u64::from_str_radix(end, 16).unwrap(),
        );
        let mut at = start;
        let here = needles.found_in(|buffer| {
            let most = usize::try_from(end - at).unwrap().min(buffer.len());
            let count = memory.read_at(&mut buffer[..most], at).unwrap_or(0);
            at += count as u64;
            count
        });
        searched += at - start;
        found.extend(here);
    }
    (searched, found)
}

/// Searches the files that a process has open for writing, which for a VMM is its guest's disk layer.
fn search_disks(pid: u32, needles: &Needles) -> (u64, Vec<String>) {
    let (mut searched, mut found) = (0, Vec::new());
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let path: PathBuf = entry.path();
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if !metadata.is_file() {
            continue;
        }
        let mut file = File::open(&path).unwrap();
        // Holes hold nothing: jump from data to data.
        let mut at = 0;
        while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
            file.seek(SeekFrom::Start(data)).unwrap();
            let mut part = (&file).take(end - data);
            found.extend(needles.found_in(|buffer| part.read(buffer).unwrap()));
            searched += end - data;
            at = end;
        }
    }
    (searched, found)
}

#[test]
fn key_is_nowhere_in_the_sandbox_after_it_was_used() {
    run(async {
        let key = "sk+Search=0123456789abcdefghijklmnopqrstuv";
        let api = StandIn::start(API, key).await.unwrap();
        let sandbox = Sandbox::builder()
            .name("search")
            .workspace(fresh_directory("search"))
            .memory(sandbox::Size::mib(256))
            .policy(api_rules(&api))
            .credential(api_service(&api), sources::Static::new(key))
            .resolve(API, api.ip())
            .trust(api.root_pem())
            .launch()
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let pid = vmm_of("search").expect("the VMM is a child process");

        // The marker is put together in the guest, so that no command line or script holds it; and is much, so
        // that later programs, which get the freed memory, do not overwrite it all.
        let plant = "
marker = b'planted' + b'-in-' + b'guest-' + b'memory-0123456789'
kept = marker * 1000000
open('/var/tmp/marker', 'wb').write(marker * 100)
import os; os.sync(); os.unlink('/var/tmp/marker'); del kept";
        let planted = sandbox
            .command("python3")
            .args(["-c", plant])
            .output()
            .await
            .unwrap();
        assert!(
            planted.status.success(),
            "{}",
            String::from_utf8_lossy(&planted.stderr)
        );
        for path in ["/v1/messages", "/echo"] {
            let url = format!("https://{API}:{}{path}", api.port());
            let call = sandbox
                .command("curl")
                .args(["-sS", "-i", &url])
                .output()
                .await
                .unwrap();
            assert!(call.status.success(), "{}", String::from_utf8_lossy(&call.stderr));
        }
        let sent = api
            .seen()
            .iter()
            .filter(|seen| seen.headers["x-api-key"] == key)
            .count();
        assert_eq!(sent, 2, "the key was used");
        assert!(sandbox.command("sync").status().await.unwrap().success());

        let (marker, secret) = (
            Needles::new("planted-in-guest-memory-0123456789"),
            Needles::new(key),
        );
        let (memory_bytes, found) = search_memory(pid, &marker);
        assert!(
            found.iter().any(|form| form == "plain"),
            "marker not found in {memory_bytes} bytes of memory"
        );
        assert!(
            memory_bytes >= 256 << 20,
            "guest memory is part of what was searched: {memory_bytes}"
        );
        let (disk_bytes, found) = search_disks(pid, &marker);
        assert!(
            found.iter().any(|form| form == "plain"),
            "marker not found in {disk_bytes} bytes of disk"
        );

        assert_eq!(
            search_memory(pid, &secret).1,
            Vec::<String>::new(),
            "key in guest or VMM memory"
        );
        assert_eq!(search_disks(pid, &secret).1, Vec::<String>::new(), "key on disk");
        // The same search finds the key where it has to be: here.
        let own = search_memory(std::process::id(), &secret).1;
        assert!(own.iter().any(|form| form == "plain"), "{own:?}");
    });
}

#[test]
fn every_form_is_found_across_reads() {
    let secret = "sk+Search=0123456789abcdefghijklmnopqrstuv";
    for offset in 0..3 {
        let wrapped: Vec<u8> = std::iter::repeat_n(b'q', offset).chain(secret.bytes()).collect();
        let hay = format!("{}{}{}", "-".repeat(500), base64(&wrapped), "-".repeat(500));
        let mut rest = hay.as_bytes();
        let found = Needles::new(secret)
            .found_in(|buffer| rest.read(&mut buffer[..7.min(rest.len().max(1))]).unwrap());
        assert_eq!(found, [format!("base64 at offset {offset}")]);
    }
}
