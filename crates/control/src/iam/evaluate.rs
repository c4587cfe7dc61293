//! What policies say of an action on a resource: pure.

use super::policy::{Effect, Policy, Statement};

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows it, and none denies it.
    Allowed,
    /// No statement allows it.
    NotAllowed,
    /// A statement denies it.
    Denied,
}

fn decided<'p>(effects: impl Iterator<Item = &'p Effect>) -> Decision {
    let mut decision = Decision::NotAllowed;
    for effect in effects {
        match effect {
            Effect::Deny => return Decision::Denied,
            Effect::Allow => decision = Decision::Allowed,
        }
    }
    decision
}

fn speaking_of<'p>(policies: &'p [Policy], action: &str) -> impl Iterator<Item = &'p Statement> {
    policies.iter().flat_map(|policy| &policy.statements).filter(move |statement| statement.actions.takes(action))
}

/// May this be done to this?
#[must_use]
pub fn decide(policies: &[Policy], action: &str, resource: &str) -> Decision {
    let speaking = speaking_of(policies, action).filter(|statement| statement.resources.takes(resource));
    decided(speaking.map(|statement| &statement.effect))
}

/// May this be done to everything whose name begins so? Allowed only if nothing of it is denied.
#[must_use]
pub fn decide_all(policies: &[Policy], action: &str, prefix: &str) -> Decision {
    let speaking = speaking_of(policies, action).filter(|statement| match statement.effect {
        Effect::Allow => statement.resources.takes_all(prefix),
        Effect::Deny => statement.resources.takes_some(prefix),
    });
    decided(speaking.map(|statement| &statement.effect))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const IMAGES: &str = "arn:aws:lambda:r:1:microvm-image:";

    fn policy(effect: &str, action: &str, resource: &str) -> Policy {
        let statement = json!({ "Effect": effect, "Action": action, "Resource": resource });
        Policy::parse(&json!({ "Statement": statement }).to_string()).expect("a policy")
    }

    fn policies() -> impl Strategy<Value = Vec<Policy>> {
        let actions = prop::sample::select(vec!["*", "lambda:*", "lambda:Run*", "lambda:RunMicrovm", "s3:GetObject"]);
        let resources = prop::sample::select(vec!["*", "ab*", "a?", "a", "*b", "b"]);
        let statement = (any::<bool>(), any::<bool>(), actions, any::<bool>(), resources);
        let document = prop::collection::vec(statement, 1..4).prop_map(|statements| {
            let statements: Vec<_> = statements
                .into_iter()
                .map(|(allow, not_action, action, not_resource, resource)| {
                    let resource = if resource == "*" { "*".to_owned() } else { format!("{IMAGES}{resource}") };
                    json!({
                        "Effect": if allow { "Allow" } else { "Deny" },
                        if not_action { "NotAction" } else { "Action" }: action,
                        if not_resource { "NotResource" } else { "Resource" }: resource,
                    })
                })
                .collect();
            Policy::parse(&json!({ "Statement": statements }).to_string()).expect("a policy")
        });
        prop::collection::vec(document, 0..4)
    }

    proptest! {
        #[test]
        fn a_denial_wins_wherever_it_stands(mut policies in policies(), at in any::<prop::sample::Index>(), name in "[ab]{0,3}") {
            let deny = policy("Deny", "lambda:RunMicrovm", &format!("{IMAGES}{name}"));
            policies.insert(at.index(policies.len() + 1), deny);
            prop_assert_eq!(decide(&policies, "lambda:RunMicrovm", &format!("{IMAGES}{name}")), Decision::Denied);
        }

        #[test]
        fn order_says_nothing(policies in policies(), name in "[ab]{0,3}") {
            let resource = format!("{IMAGES}{name}");
            let first = decide(&policies, "lambda:RunMicrovm", &resource);
            let reversed: Vec<_> = policies.iter().rev().map(|policy| {
                Policy { statements: policy.statements.iter().rev().cloned().collect() }
            }).collect();
            prop_assert_eq!(decide(&reversed, "lambda:RunMicrovm", &resource), first);
            // Nor does how the statements are shared out among policies.
            let one = Policy { statements: policies.iter().flat_map(|policy| policy.statements.clone()).collect() };
            prop_assert_eq!(decide(&[one], "lambda:RunMicrovm", &resource), first);
        }

        #[test]
        fn what_may_be_done_to_all_may_be_done_to_each(policies in policies(), name in "[ab]{0,3}") {
            let each = decide(&policies, "lambda:GetMicrovm", &format!("{IMAGES}{name}"));
            match decide_all(&policies, "lambda:GetMicrovm", IMAGES) {
                Decision::Allowed => prop_assert_eq!(each, Decision::Allowed),
                Decision::NotAllowed => prop_assert_ne!(each, Decision::Denied),
                Decision::Denied => {}
            }
        }

        #[test]
        fn another_allowance_never_takes_away(policies in policies(), name in "[ab]{0,3}") {
            let resource = format!("{IMAGES}{name}");
            let before = decide(&policies, "lambda:RunMicrovm", &resource);
            let more = [policies, vec![policy("Allow", "*", "*")]].concat();
            let after = decide(&more, "lambda:RunMicrovm", &resource);
            prop_assert_eq!(after == Decision::Denied, before == Decision::Denied);
            prop_assert_ne!(after, Decision::NotAllowed);
        }
    }

    #[test]
    fn nothing_is_allowed_by_silence() {
        assert_eq!(decide(&[], "lambda:RunMicrovm", IMAGES), Decision::NotAllowed);
        let not = r#"{"Statement": {"Effect": "Allow", "NotAction": "iam:*", "NotResource": "arn:aws:s3:::*"}}"#;
        let policies = [Policy::parse(not).expect("a policy")];
        assert_eq!(decide(&policies, "lambda:RunMicrovm", IMAGES), Decision::Allowed);
        assert_eq!(decide(&policies, "iam:PassRole", IMAGES), Decision::NotAllowed);
        assert_eq!(decide(&policies, "s3:GetObject", "arn:aws:s3:::code/app.zip"), Decision::NotAllowed);
        assert_eq!(decide(&[Policy::deny_everything()], "sts:GetCallerIdentity", "*"), Decision::Denied);
    }
}
