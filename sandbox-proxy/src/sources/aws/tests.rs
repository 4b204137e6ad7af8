use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use sandbox_core::credential::ExposeSecret;

use super::*;

fn with(source: Aws, variables: &[(&str, &str)]) -> Aws {
    let variables: HashMap<_, _> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
        .collect();
    Aws {
        variables: Variables(Arc::new(move |name| variables.get(name).cloned())),
        ..source
    }
}

async fn fetch(source: &Aws) -> Result<(String, Option<SystemTime>), CredentialError> {
    let sandbox = "one".parse().unwrap();
    let request = CredentialRequest {
        sandbox: &sandbox,
        service: "aws",
        target: None,
    };
    let issued = source.fetch(&request).await?;
    let Credential::Aws {
        access_key_id,
        secret_access_key,
        session_token,
    } = issued.credential
    else {
        panic!("other keys")
    };
    let token = session_token.as_ref().map_or("-", |token| token.expose_secret());
    let keys = format!("{access_key_id} {} {token}", secret_access_key.expose_secret());
    Ok((keys, issued.expires))
}

async fn keys(source: &Aws) -> String {
    fetch(source).await.unwrap().0
}

fn files(directory: &std::path::Path, credentials: &str, config: &str) -> [(&'static str, String); 2] {
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    [
        ("AWS_SHARED_CREDENTIALS_FILE", write("credentials", credentials)),
        ("AWS_CONFIG_FILE", write("config", config)),
    ]
}

#[tokio::test]
async fn environment_comes_before_the_profile_unless_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let stored = "[default]\naws_access_key_id=FILE\naws_secret_access_key = s=+/ \n[dev]\naws_access_key_id=DEV\n\
                  aws_secret_access_key=d\naws_session_token=t\n";
    let [a, b] = files(directory.path(), stored, "");
    let both = [
        ("AWS_ACCESS_KEY_ID", "ENV"),
        ("AWS_SECRET_ACCESS_KEY", "e"),
        (a.0, a.1.as_str()),
        (b.0, b.1.as_str()),
    ];
    assert_eq!(keys(&with(Aws::standard(), &both)).await, "ENV e -");
    assert_eq!(keys(&with(Aws::standard(), &both[2..])).await, "FILE s=+/ -");
    assert_eq!(keys(&with(Aws::profile("dev"), &both)).await, "DEV d t");
    let named = [both[2], both[3], ("AWS_PROFILE", "dev")];
    assert_eq!(keys(&with(Aws::standard(), &named)).await, "DEV d t");
    let half = with(Aws::standard(), &[("AWS_ACCESS_KEY_ID", "ENV"), both[2], both[3]]);
    assert!(matches!(
        fetch(&half).await,
        Err(CredentialError::Malformed { .. })
    ));
    let nothing = with(Aws::standard(), &[("HOME", "/nonexistent")]);
    assert!(matches!(
        fetch(&nothing).await,
        Err(CredentialError::NotFound { .. })
    ));
}

#[tokio::test]
async fn changed_files_act_at_once_and_sections_do_not_mix() {
    let directory = tempfile::tempdir().unwrap();
    let config =
        "[profile x]\naws_access_key_id=CONFIG\naws_secret_access_key=c\n[x]\naws_access_key_id=NO\n";
    files(directory.path(), "", config);
    let source = Aws::profile("x").files(
        directory.path().join("credentials"),
        directory.path().join("config"),
    );
    assert_eq!(keys(&source).await, "CONFIG c -");
    files(
        directory.path(),
        "[y]\naws_access_key_id=Y\n[x]\naws_access_key_id=NEW\naws_secret_access_key=n\n",
        config,
    );
    assert_eq!(keys(&source).await, "NEW n -");
    files(directory.path(), "[x]\naws_access_key_id=ONLY\n", config);
    assert!(matches!(
        fetch(&source).await,
        Err(CredentialError::Malformed { .. })
    ));
    files(
        directory.path(),
        "[profile x]\naws_access_key_id=NO\n",
        "[profile x]\nrole_arn=r\nsource_profile=y\n",
    );
    let error = fetch(&source).await.unwrap_err().to_string();
    assert!(error.contains("export-credentials"), "{error}");
}

/// Stands for AWS's own tool: says how it was called.
fn tool() -> Vec<OsString> {
    let script = "printf '{\"Version\":1,\"AccessKeyId\":\"T\",\"SecretAccessKey\":\"%s\"}' \"$(echo \"$*\" | tr ' ' ,)\"";
    ["sh", "-c", script, "aws"].map(OsString::from).to_vec()
}

#[tokio::test]
async fn role_that_variables_name_is_asked_for_with_awss_own_tool_after_keys_and_before_profiles() {
    let directory = tempfile::tempdir().unwrap();
    let stored = "[default]\naws_access_key_id=FILE\naws_secret_access_key=s\n";
    let [a, b] = files(directory.path(), stored, "");
    let all = [
        ("AWS_ACCESS_KEY_ID", "ENV"),
        ("AWS_SECRET_ACCESS_KEY", "e"),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
        (a.0, a.1.as_str()),
        (b.0, b.1.as_str()),
    ];
    let source = |source: Aws, variables: &[(&str, &str)]| Aws {
        tool: tool(),
        ..with(source, variables)
    };
    let role = "T configure,export-credentials,--format,process -";
    assert_eq!(keys(&source(Aws::standard(), &all)).await, "ENV e -");
    assert_eq!(keys(&source(Aws::standard(), &all[2..])).await, role);
    // Without a role the tool says what is missing.
    assert_eq!(keys(&source(Aws::standard(), &all[3..])).await, role);
    let without_token = [all[2], all[4], all[5]];
    assert_eq!(keys(&source(Aws::standard(), &without_token)).await, "FILE s -");
    assert_eq!(keys(&source(Aws::profile("default"), &all)).await, "FILE s -");
    let beside = [all[2], ("AWS_WEB_IDENTITY_TOKEN_FILE", "token"), all[4], all[5]];
    let error = fetch(&source(Aws::standard(), &beside)).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("AWS_WEB_IDENTITY_TOKEN_FILE"), "{cause}");
    let missing = Aws {
        tool: vec!["/nonexistent/aws".into()],
        ..with(Aws::standard(), &all[2..])
    };
    let error = fetch(&missing).await.unwrap_err().to_string();
    assert!(error.contains("web identity"), "{error}");
}

#[tokio::test]
async fn profiles_that_take_a_role_or_sign_in_are_asked_for_with_awss_own_tool() {
    for settings in [
        "role_arn = r\nsource_profile = y",
        "sso_session = s",
        "web_identity_token_file = /token\nrole_arn = r",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = files(directory.path(), "", &format!("[profile dev]\n{settings}\n"));
        let variables = [(a.0, a.1.as_str()), (b.0, b.1.as_str())];
        let source = Aws {
            tool: tool(),
            ..with(Aws::profile("dev"), &variables)
        };
        assert_eq!(
            keys(&source).await,
            "T configure,export-credentials,--format,process,--profile=dev -",
            "{settings}"
        );
        let missing = Aws {
            tool: vec!["/nonexistent/aws".into()],
            shared: Arc::default(),
            ..source
        };
        let error = fetch(&missing).await.unwrap_err();
        let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        let causes: Vec<_> = causes.map(ToString::to_string).collect();
        assert!(
            error.to_string().contains("profile dev")
                && causes
                    .iter()
                    .any(|cause| cause.contains("`aws configure export-credentials` failed")),
            "{error} {causes:?}"
        );
    }
}

#[tokio::test]
async fn process_is_asked_again_once_its_keys_end() {
    let directory = tempfile::tempdir().unwrap();
    let script = "cd \"$1\"; echo x >> runs; printf '{\"Version\":1,\"AccessKeyId\":\"P%s\",\"SecretAccessKey\":\"s\",\
                  \"SessionToken\":\"t\"%s}' $(wc -l < runs) \"$(cat end)\"";
    std::fs::write(directory.path().join("end"), "").unwrap();
    let source = Aws::process([
        "sh".into(),
        "-c".into(),
        OsString::from(script),
        "x".into(),
        directory.path().as_os_str().to_owned(),
    ]);
    assert_eq!(keys(&source).await, "P1 s t");
    assert_eq!(keys(&source).await, "P2 s t", "no end, not kept");
    std::fs::write(
        directory.path().join("end"),
        ",\"Expiration\":\"2020-01-01T00:00:00Z\"",
    )
    .unwrap();
    assert_eq!(keys(&source).await, "P3 s t");
    assert_eq!(keys(&source).await, "P4 s t", "has ended");
    std::fs::write(
        directory.path().join("end"),
        ",\"Expiration\":\"2999-01-01T00:00:00+00:00\"",
    )
    .unwrap();
    let (first, expires) = fetch(&source).await.unwrap();
    assert!(expires.unwrap() > SystemTime::now() + Duration::from_secs(86400));
    assert_eq!(keys(&source).await, first, "kept");
    let profile = directory.path().join("config");
    std::fs::write(
        &profile,
        "[default]\ncredential_process = echo '{\"Version\": 1, \"AccessKeyId\": \"A\", \
        \"SecretAccessKey\": \"zz qq\"}'\n",
    )
    .unwrap();
    let spaced = Aws::profile("default").files("/nonexistent", &profile);
    let error = fetch(&spaced).await.unwrap_err();
    assert!(!format!("{error:?}").contains("zz qq"), "{error:?}");
}

/// The directory that a program runs in may be the guest's workspace.
#[tokio::test]
async fn files_beside_the_program_are_never_read() {
    let here = tempfile::tempdir_in(".").unwrap();
    let relative = std::path::Path::new(here.path().file_name().unwrap());
    let folder = relative.join(".aws");
    std::fs::create_dir(&folder).unwrap();
    let evil = "[default]\naws_access_key_id=EVIL\naws_secret_access_key=e\n";
    files(&folder, evil, evil);
    let home = relative.to_str().unwrap();
    for variables in [&[][..], &[("HOME", "")], &[("HOME", home)]] {
        let error = fetch(&with(Aws::standard(), variables)).await.unwrap_err();
        assert!(matches!(error, CredentialError::NotFound { .. }), "{error}");
    }
    let named = folder.join("credentials").display().to_string();
    let cause = |result: Result<_, CredentialError>| {
        let error = result.unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    for variable in ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"] {
        let relative = with(Aws::standard(), &[(variable, &named), ("HOME", "/nonexistent")]);
        assert!(cause(fetch(&relative).await).contains(variable));
    }
    // Nor are they by a tool that is run.
    let role = ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token");
    for (variable, value) in [
        ("AWS_SHARED_CREDENTIALS_FILE", named.as_str()),
        ("AWS_CONFIG_FILE", &named),
        ("HOME", home),
    ] {
        let source = Aws {
            tool: tool(),
            ..with(Aws::standard(), &[role, (variable, value)])
        };
        assert!(cause(fetch(&source).await).contains(variable), "{variable}");
    }
    let token = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &named),
    ];
    let container = with(Aws::environment().or_container(), &token);
    assert!(cause(fetch(&container).await).contains("TOKEN_FILE"));
}

#[tokio::test]
async fn endless_output_is_bounded() {
    let source = Aws::process(["sh", "-c", "yes"]);
    assert!(matches!(
        fetch(&source).await,
        Err(CredentialError::Malformed { .. })
    ));
}

#[tokio::test]
async fn roles_of_containers_and_machines_are_asked_for_only_when_told_and_only_on_the_link() {
    let address = serve(&[
        (
            "GET /creds",
            "authorization: tok",
            "{\"AccessKeyId\":\"C\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\
          \"Expiration\":\"2999-01-01T00:00:00Z\"}",
        ),
        (
            "PUT /latest/api/token",
            "x-aws-ec2-metadata-token-ttl-seconds: 60",
            "session",
        ),
        (
            "GET /latest/meta-data/iam/security-credentials/ ",
            "x-aws-ec2-metadata-token: session",
            "role",
        ),
        (
            "GET /latest/meta-data/iam/security-credentials/role",
            "x-aws-ec2-metadata-token: session",
            "{\"Code\":\"Success\",\"AccessKeyId\":\"M\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\
          \"Expiration\":\"2999-01-01T00:00:00Z\"}",
        ),
    ])
    .await;
    let full = format!("http://{address}/creds");
    let container = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", full.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "tok"),
        ("HOME", "/nonexistent"),
    ];
    let unasked = fetch(&with(Aws::standard(), &container)).await;
    assert!(matches!(unasked, Err(CredentialError::NotFound { .. })));
    assert_eq!(
        keys(&with(Aws::standard().or_container(), &container)).await,
        "C s t"
    );
    let server = format!("http://{address}");
    let machine = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.as_str()),
        ("HOME", "/nonexistent"),
    ];
    assert_eq!(
        keys(&with(Aws::standard().or_instance(), &machine)).await,
        "M s t"
    );
    let elsewhere = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/creds")];
    let refused = fetch(&with(Aws::environment().or_container(), &elsewhere))
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("TLS"), "{cause}");
}

/// Answers requests that start so and have such a header; one after the other.
async fn serve(answers: &[(&'static str, &'static str, &'static str)]) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let answers = answers.to_vec();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(char::from(byte));
            }
            let answer = answers
                .iter()
                .find(|(start, header, _)| head.starts_with(start) && head.to_lowercase().contains(header));
            let (status, text) = answer.map_or(("403 No", ""), |(_, _, text)| ("200 OK", *text));
            let length = text.len();
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}
