//! Whatever is asked in whatever order, and however the host answers.

use api::{directory::Directory, host::Found, microvms::MicrovmState as State};
use proptest::{collection::vec, prelude::*};

use crate::testing::{Call, Fixture, lost, on_two_threads, policy, unchanged, until};

#[derive(Debug, Clone, Copy)]
enum Step {
    Suspend(usize),
    Resume(usize),
    Wake(usize),
    Terminate(usize),
    Fail(Call, bool),
    Hold(Call),
    Release(Call),
    Crash(usize),
    Restart,
}

const MICROVMS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..MICROVMS;
    let verb = prop::sample::select(vec![Call::Run, Call::Suspend, Call::Resume, Call::Terminate]);
    vec(
        prop_oneof![
            3 => which.clone().prop_map(Step::Suspend),
            3 => which.clone().prop_map(Step::Resume),
            3 => which.clone().prop_map(Step::Wake),
            1 => which.clone().prop_map(Step::Terminate),
            2 => (verb.clone(), prop::bool::weighted(0.3)).prop_map(|(call, lost)| Step::Fail(call, lost)),
            2 => verb.clone().prop_map(Step::Hold),
            3 => verb.prop_map(Step::Release),
            1 => which.prop_map(Step::Crash),
            1 => Just(Step::Restart),
        ],
        0..40,
    )
}

async fn play(steps: Vec<Step>) {
    let mut fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let mut ids = vec![];
    for index in 0..MICROVMS {
        ids.push(fixture.pending(policy(600, 600, index % 2 == 0)).await);
    }
    let mut wakes = vec![];
    for step in steps {
        match step {
            // Refusals are fine; what matters is what is true at the end.
            Step::Suspend(index) => drop(fixture.suspend(&ids[index]).await),
            Step::Resume(index) => drop(fixture.resume(&ids[index]).await),
            Step::Terminate(index) => fixture.terminate(&ids[index]).await.expect("a terminate is always taken"),
            Step::Wake(index) => {
                let (control, id) = (fixture.control().clone(), ids[index]);
                wakes.push(tokio::spawn(async move { drop(control.awake(&id).await) }));
            }
            Step::Fail(call, gone) => fixture.host.fail(call, if gone { lost() } else { unchanged() }),
            Step::Hold(call) => fixture.host.hold(call),
            Step::Release(call) => fixture.host.release(call),
            Step::Crash(index) => {
                if let Found::Running(_) = fixture.host.vm(&ids[index]) {
                    fixture.host.crash(&ids[index], "it ended");
                }
            }
            Step::Restart => {
                for wake in wakes.drain(..) {
                    wake.abort();
                    let _ = wake.await;
                }
                fixture.crash().await;
                fixture.start().await;
            }
        }
        tokio::task::yield_now().await;
    }
    for call in [Call::Run, Call::Suspend, Call::Resume, Call::Terminate] {
        fixture.host.release(call);
    }
    for id in &ids {
        until("it comes to rest, and the host has what the record says", async || match fixture.state(id).await {
            State::Running => match fixture.control().shared.registry.get(id).unwrap().running() {
                Some(vm) => fixture.host.vm(id) == Found::Running(vm),
                None => false,
            },
            State::Suspended => fixture.host.vm(id) == Found::Suspended,
            State::Terminated => fixture.host.terminated(id) && fixture.host.vm(id) == Found::Nothing,
            State::Pending | State::Suspending | State::Terminating => false,
        })
        .await;
    }
    for wake in wakes {
        wake.await.unwrap();
    }
    for id in &ids {
        fixture.terminate(id).await.unwrap();
        fixture.until_state(id, State::Terminated).await;
        assert!(fixture.host.terminated(id));
    }
    assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_is_left(steps in steps()) {
        on_two_threads(play(steps));
    }
}
