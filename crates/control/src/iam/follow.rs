//! Keeps the principals that requests are looked up in as they are in the database, whoever changes them there.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

use super::{policy::Policy, seal::SealingKey};
use crate::{
    auth::{AccessKey, Principals, User},
    shared::Shared,
    store::{Store, StoreError, iam as rows},
};

/// Time between two looks: a change made elsewhere is in force by then.
const LOOK: Duration = Duration::from_millis(250);

/// What the database says, as of one moment.
struct Picture {
    generation: i64,
    keys: Vec<(AccessKey, Arc<User>)>,
}

async fn picture(store: &Store, key: &SealingKey) -> Result<Picture, StoreError> {
    let mut moment = store.moment().await?;
    let generation = rows::generation(&mut moment).await?;
    let users = rows::users(&mut moment).await?;
    let keys = rows::keys(&mut moment, None).await?;
    let written = rows::policies(&mut moment, None).await?;
    drop(moment);
    let mut policies: HashMap<String, Vec<Policy>> = HashMap::new();
    for record in written {
        let policy = Policy::parse(&record.document).unwrap_or_else(|failure| {
            let error = &failure as &dyn std::error::Error;
            error!(
                error,
                user = record.user_id,
                policy = record.name,
                "a policy cannot be read; its user may do nothing"
            );
            Policy::deny_everything()
        });
        policies.entry(record.user_id).or_default().push(policy);
    }
    let users: HashMap<String, Arc<User>> = users
        .into_iter()
        .map(|user| {
            let policies = policies.remove(&user.id).unwrap_or_default();
            (user.id.clone(), Arc::new(User { name: user.name, id: user.id, policies }))
        })
        .collect();
    let keys = keys
        .into_iter()
        .filter(|record| record.active)
        .filter_map(|record| {
            let user = users.get(&record.user_id)?;
            let Some(secret) = key.open_secret(&record.id, &record.user_id, &record.sealed_secret) else {
                error!(key = record.id, "the secret of an access key cannot be opened; the key is good for nothing");
                return None;
            };
            Some((AccessKey { id: record.id, secret }, Arc::clone(user)))
        })
        .collect();
    Ok(Picture { generation, keys })
}

/// Looks once now, and then again and again until the daemon stops.
pub(crate) async fn start(
    shared: &Arc<Shared>,
    principals: Arc<Principals>,
    key: SealingKey,
) -> Result<(), StoreError> {
    let first = picture(&shared.store, &key).await?;
    principals.replace(first.keys);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = look_often(&shared.store, &principals, &key, first.generation) => {}
        }
    });
    Ok(())
}

async fn look_often(store: &Store, principals: &Principals, key: &SealingKey, mut seen: i64) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look(store, principals, key, seen).await {
            Ok(generation) => seen = generation,
            Err(failure) => {
                let error = &failure as &dyn std::error::Error;
                error!(error, "changes of users and policies cannot be seen; those known last stay in force");
            }
        }
    }
}

async fn look(store: &Store, principals: &Principals, key: &SealingKey, seen: i64) -> Result<i64, StoreError> {
    if rows::generation(&mut *store.read().await?).await? == seen {
        return Ok(seen);
    }
    let now = picture(store, key).await?;
    principals.replace(now.keys);
    Ok(now.generation)
}
