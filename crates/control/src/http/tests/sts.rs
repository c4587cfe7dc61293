//! `sts get-caller-identity`, as clients call it.

use super::*;

async fn asked(client: &Client, method: &str, target: &str, body: &str) -> (u16, String) {
    let request = client.signed(method, target, body);
    let response = sts_router(authenticator(vec![]), Audit::nowhere()).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/xml");
    assert_eq!(response.headers()["x-amzn-requestid"].len(), 36);
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn sts(client: Client) -> Client {
    Client { service: "sts", ..client }
}

const FORM: &str = "Action=GetCallerIdentity&Version=2011-06-15";

#[tokio::test]
async fn a_caller_is_told_who_it_is() {
    let (status, text) = asked(&sts(Client::user()), "POST", "/", FORM).await;
    assert_eq!(status, 200);
    for part in [
        "<Arn>arn:aws:iam::123456789012:user/ann</Arn>",
        "<UserId>AIDAEXAMPLE</UserId>",
        "<Account>123456789012</Account>",
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let (_, text) = asked(&sts(Client::new()), "GET", &format!("/?{FORM}"), "").await;
    assert!(text.contains("<Arn>arn:aws:iam::123456789012:root</Arn>"), "{text}");
    assert!(text.contains("<UserId>123456789012</UserId>"), "{text}");
}

#[tokio::test]
async fn refusals_are_xml_with_the_codes_of_the_query_protocol() {
    for (client, body, status, code) in [
        (sts(Client { key: "AKIANOBODY", ..Client::new() }), FORM, 403, "InvalidClientTokenId"),
        (sts(Client { secret: "guess", ..Client::new() }), FORM, 403, "SignatureDoesNotMatch"),
        (sts(Client { region: "eu-west-1", ..Client::new() }), FORM, 403, "SignatureDoesNotMatch"),
        (Client::new(), FORM, 403, "SignatureDoesNotMatch"),
        (sts(Client::new()), "Action=AssumeRole&Version=2011-06-15", 400, "InvalidAction"),
        (sts(Client::new()), "Action=%3Cb%3E%26", 400, "InvalidAction"),
        (sts(Client::new()), "", 400, "MissingAction"),
    ] {
        let (got, text) = asked(&client, "POST", "/", body).await;
        assert_eq!(got, status, "{text}");
        assert!(text.contains(&format!("<Code>{code}</Code>")) && text.contains("<Type>Sender</Type>"), "{text}");
        assert!(!text.contains("<b>"), "{text}");
    }
}
