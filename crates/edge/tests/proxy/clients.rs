//! Clients that people use.

use std::process::Stdio;

use tokio::process::Command;

use crate::{servers::App, support::World};

#[tokio::test]
async fn curl_trusts_the_development_authority() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let host = world.host();
    let port = world.address.port();
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let output = Command::new("curl")
            .args([option, "--silent", "--show-error", "--max-time", "20", "--cacert"])
            .arg(world.ca.path().join("ca.pem"))
            .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
            .args(["--header", &format!("X-aws-proxy-auth: {}", world.token())])
            .args(["--write-out", "version %{http_version}"])
            .arg(format!("https://{host}:{port}/hello"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen = String::from_utf8(output.stdout).unwrap();
        assert!(seen.starts_with("GET /hello\n"), "{seen}");
        assert!(seen.contains(&format!("host: {host}:{port}\n")), "{seen}");
        assert!(seen.ends_with(&format!("version {version}")), "{seen}");
    }
}
