//! Whatever is asked of connectors, several things at once.

use super::*;
use crate::testing::on_two_threads;

#[derive(Debug, Clone, Copy)]
enum Step {
    Create(usize),
    Update(usize, u32),
    Delete(usize),
    DeleteVersion(usize, u64),
    Settle,
    Restart,
}

const NAMES: [&str; 2] = ["a", "b"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..NAMES.len();
    let step = prop_oneof![
        3 => which.clone().prop_map(Step::Create),
        4 => (which.clone(), 1u32..=3).prop_map(|(which, subnet)| Step::Update(which, subnet)),
        1 => which.clone().prop_map(Step::Delete),
        2 => (which, 1u64..5).prop_map(|(which, version)| Step::DeleteVersion(which, version)),
        3 => Just(Step::Settle),
        1 => Just(Step::Restart),
    ];
    vec(step, 0..25)
}

/// Whatever was asked, what there is hangs together.
pub(super) async fn is_legal(fixture: &Fixture, name: &str) {
    let Ok(connector) = get(fixture, name).await else { return };
    if connector.state == Some(State::Deleting) {
        return;
    }
    let versions = versions(fixture, name).await;
    let newest = connector.version.unwrap();
    assert_eq!(versions[0].0, newest, "the newest version is there");
    assert!(versions.windows(2).all(|pair| pair[0].0 > pair[1].0));
    for (version, state) in &versions {
        let making = *version == newest
            && (connector.state == Some(State::Pending)
                || connector.last_update_status == Some(LastUpdateStatus::InProgress));
        assert!(making || *state != State::Pending, "a version that nobody makes");
    }
    if let Some(in_force) = connector.latest_version {
        assert!(versions.contains(&(in_force, State::Active)), "the version in force is there");
    }
    assert_eq!(connector.latest_version.is_some(), connector.state == Some(State::Active));
}

async fn play(steps: Vec<Step>) {
    let mut fixture = fixture().await;
    for (index, step) in steps.into_iter().enumerate() {
        let token = index.to_string();
        match step {
            Step::Create(which) => drop(create(&fixture, request(NAMES[which], &token)).await),
            Step::Update(which, subnet) => {
                drop(update(&fixture, NAMES[which], &format!("subnet-{subnet}"), &token).await);
            }
            Step::Delete(which) => drop(delete(&fixture, NAMES[which]).await),
            Step::DeleteVersion(which, version) => {
                if let Ok(connector) = get(&fixture, NAMES[which]).await {
                    drop(delete(&fixture, &format!("{}:{version}", connector.arn)).await);
                }
            }
            Step::Settle => tokio::time::sleep(Duration::from_millis(5)).await,
            Step::Restart => restart(&mut fixture).await,
        }
    }
    for name in NAMES {
        until("it comes to rest", async || match get(&fixture, name).await {
            Ok(connector) => {
                !matches!(connector.state, Some(State::Pending | State::Deleting))
                    && connector.last_update_status != Some(LastUpdateStatus::InProgress)
            }
            Err(_) => true,
        })
        .await;
        is_legal(&fixture, name).await;
        if get(&fixture, name).await.is_ok() {
            delete(&fixture, name).await.unwrap();
            gone(&fixture, name).await;
        }
        ready(&fixture, name).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_leaves_legal_states(steps in steps()) {
        on_two_threads(play(steps));
    }
}
