//! `pilotlight env`: the exports that point AWS clients here.

use crate::{access, cli::DataArguments, config::Config, running::Running};

/// Prints them, quoted for a shell.
pub fn print(arguments: &DataArguments) -> anyhow::Result<()> {
    let config = Config::load_data(arguments)?;
    let running = Running::find(&config.data_dir)?;
    let key = access::existing_local_key(&config.data_dir)?;
    let ca = running.ca.map(|path| path.display().to_string());
    // A session token of another account's key would be sent along with ours.
    println!("unset AWS_SESSION_TOKEN AWS_SECURITY_TOKEN AWS_PROFILE");
    let of_ca = ["AWS_CA_BUNDLE", "PILOTLIGHT_CA_BUNDLE"];
    for (name, value) in [
        ("AWS_ENDPOINT_URL", running.api_url.as_str()),
        ("AWS_ACCESS_KEY_ID", &key.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", &key.secret_access_key),
        ("AWS_REGION", &running.region),
        ("AWS_DEFAULT_REGION", &running.region),
    ]
    .into_iter()
    .chain(ca.iter().flat_map(|ca| of_ca.map(|name| (name, ca.as_str()))))
    {
        println!("export {name}={}", quoted(value));
    }
    Ok(())
}

/// A word as a shell reads it and leaves it alone.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
