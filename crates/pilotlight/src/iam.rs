//! `pilotlight iam`: users, access keys and policies, in the database of the data directory. A server that runs with it
//! sees a change within a second.

use std::io::{self, Read, Write};

use anyhow::{Context, bail};
use control::iam::{Admin, LocalUser, policy::DOCUMENT_BYTES_MAX};
use futures_util::future::LocalBoxFuture;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    access,
    cli::{IamArguments, IamVerb, KeyVerb, PolicyVerb, UserVerb},
    config::Config,
};

/// Does what was asked.
pub fn run(arguments: &IamArguments) -> anyhow::Result<()> {
    let config = Config::load_data(&arguments.data)?;
    if !config.data_dir.is_dir() {
        bail!(
            "there is no data directory {}; start `pilotlight serve` once, or name its directory with --data-dir",
            config.data_dir.display()
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work: LocalBoxFuture<'_, _> = Box::pin(async {
        let key = access::sealing_key(&config.data_dir)?;
        let by = LocalUser { name: whoever(), account: config.account.clone() };
        let admin = Admin::open(&config.data_dir.join("state.db"), key, by).await;
        let admin = admin.context("the state cannot be opened")?;
        let result = done(&admin, &config, &arguments.verb).await;
        admin.close().await;
        result
    });
    runtime.block_on(work)
}

async fn done(admin: &Admin, config: &Config, verb: &IamVerb) -> anyhow::Result<()> {
    let mut out = io::stdout();
    match verb {
        IamVerb::User(UserVerb::Create { name }) => {
            let user = admin.create_user(name).await?;
            writeln!(out, "{}", user_arn(config, &user.name))?;
        }
        IamVerb::User(UserVerb::List) => {
            for user in admin.users().await? {
                writeln!(out, "{}  {}  {}", user_arn(config, &user.name), user.id, time(user.created_at))?;
            }
        }
        IamVerb::User(UserVerb::Delete { name, force }) => admin.delete_user(name, *force).await?,
        IamVerb::Key(KeyVerb::Create { user }) => {
            let key = admin.create_key(user).await?;
            eprintln!(
                "This is the only time the secret is shown. For a shell: eval \"$(pilotlight iam key create …)\""
            );
            writeln!(out, "export AWS_ACCESS_KEY_ID='{}'", key.id)?;
            writeln!(out, "export AWS_SECRET_ACCESS_KEY='{}'", key.secret.expose())?;
        }
        IamVerb::Key(KeyVerb::List { user }) => {
            let users = admin.users().await?;
            for key in admin.keys(user.as_deref()).await? {
                let owner = users.iter().find(|user| user.id == key.user_id).map_or("", |user| user.name.as_str());
                let state = if key.active { "Active" } else { "Inactive" };
                writeln!(out, "{}  {state}  {}  {owner}", key.id, time(key.created_at))?;
            }
        }
        IamVerb::Key(KeyVerb::Delete { id }) => admin.delete_key(id).await?,
        IamVerb::Key(KeyVerb::Deactivate { id }) => admin.set_key_active(id, false).await?,
        IamVerb::Key(KeyVerb::Activate { id }) => admin.set_key_active(id, true).await?,
        IamVerb::Policy(PolicyVerb::Put { user, name, document }) => {
            admin.put_policy(user, name, &text_of(document)?).await?;
        }
        IamVerb::Policy(PolicyVerb::List { user }) => {
            for policy in admin.policies(user).await? {
                writeln!(out, "{}  {}", policy.name, time(policy.updated_at))?;
            }
        }
        IamVerb::Policy(PolicyVerb::Get { user, name }) => {
            writeln!(out, "{}", admin.policy(user, name).await?.document.trim_end())?;
        }
        IamVerb::Policy(PolicyVerb::Delete { user, name }) => admin.delete_policy(user, name).await?,
    }
    Ok(())
}

/// Who runs this command, for the audit log: the user of the process, and if that came by sudo, whose it was before. Sudo
/// says it in the environment, where root could have written anything; but root could write anything into the log as well.
fn whoever() -> String {
    let name = match rustix::process::getuid() {
        root if root.is_root() => "local:root".to_owned(),
        other => format!("local:uid-{}", other.as_raw()),
    };
    match std::env::var("SUDO_USER") {
        Ok(user) if !user.is_empty() => format!("{name} (sudo by {user})"),
        Ok(_) | Err(_) => name,
    }
}

fn user_arn(config: &Config, name: &str) -> String {
    format!("arn:aws:iam::{}:user/{name}", config.account)
}

fn time(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_ms / 1000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "-".to_owned())
}

/// A document from a file, or from standard input if the file is `-`; never more than a policy may have.
fn text_of(path: &std::path::Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let limit = DOCUMENT_BYTES_MAX as u64 + 1;
    let failed = || format!("cannot read the policy from {}", path.display());
    if path.as_os_str() == "-" {
        io::stdin().take(limit).read_to_string(&mut text).with_context(failed)?;
    } else {
        std::fs::File::open(path).with_context(failed)?.take(limit).read_to_string(&mut text).with_context(failed)?;
    }
    Ok(text)
}
