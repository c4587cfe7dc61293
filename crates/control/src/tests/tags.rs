//! Tags of things.

use api::{
    catalogue,
    error::ServiceError,
    tags::{ListTagsRequest, TAGS_MAX, TagResourceRequest, Tags, UntagResourceRequest},
};

use crate::{
    http::Operations,
    testing::{Call, Fixture, create_request, run_request, until},
};

fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) async fn listed(fixture: &Fixture, resource: &str) -> Result<Tags, ServiceError> {
    let request = ListTagsRequest { resource: resource.to_owned() };
    fixture.control().list_tags(&fixture.caller, request).await.map(|answer| answer.tags)
}

pub(crate) async fn tag(fixture: &Fixture, resource: &str, tags: Tags) -> Result<(), ServiceError> {
    let request = TagResourceRequest { resource: resource.to_owned(), tags };
    fixture.control().tag_resource(&fixture.caller, request).await.map(drop)
}

pub(crate) async fn untag(fixture: &Fixture, resource: &str, keys: &[&str]) -> Result<(), ServiceError> {
    let tag_keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let request = UntagResourceRequest { resource: resource.to_owned(), tag_keys };
    fixture.control().untag_resource(&fixture.caller, request).await.map(drop)
}

#[tokio::test]
async fn an_image_is_tagged_and_untagged() {
    let fixture = Fixture::new().await;
    let given = tags(&[("team", "a"), ("stage", "test")]);
    fixture
        .create(api::images::CreateMicrovmImageRequest { tags: Some(given.clone()), ..create_request("a") })
        .await
        .unwrap();
    let arn = fixture.arn("a").to_string();
    assert_eq!(listed(&fixture, &arn).await, Ok(given));
    let before = fixture.image("a").await.unwrap().updated_at;

    tag(&fixture, &arn, tags(&[("team", "b"), ("new", "")])).await.unwrap();
    let merged = tags(&[("team", "b"), ("stage", "test"), ("new", "")]);
    assert_eq!(listed(&fixture, &arn).await, Ok(merged.clone()));
    let image = fixture.image("a").await.unwrap();
    assert_eq!(image.tags, merged);
    assert!(image.updated_at >= before, "a build may end meanwhile");

    untag(&fixture, &arn, &["team", "never-there"]).await.unwrap();
    untag(&fixture, &arn, &["team"]).await.unwrap();
    assert_eq!(listed(&fixture, &arn).await, Ok(tags(&[("stage", "test"), ("new", "")])));
}

#[tokio::test]
async fn a_refused_change_changes_nothing() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let arn = fixture.arn("a").to_string();
    let many = |count: usize| (0..count).map(|index| (format!("k{index:02}"), String::new())).collect::<Tags>();
    tag(&fixture, &arn, many(TAGS_MAX)).await.unwrap();
    // One that is there already takes no room.
    tag(&fixture, &arn, tags(&[("k00", "again")])).await.unwrap();
    let before = listed(&fixture, &arn).await.unwrap();
    assert_eq!(tag(&fixture, &arn, tags(&[("k00", "x"), ("l", "")])).await, Err(catalogue::too_many_tags(51, 50)));
    assert_eq!(tag(&fixture, &arn, tags(&[("k00", "x"), ("Aws:l", "")])).await, Err(catalogue::reserved_tag("Aws:l")));
    assert_eq!(listed(&fixture, &arn).await, Ok(before));
    let request = api::images::CreateMicrovmImageRequest { tags: Some(many(51)), ..create_request("b") };
    assert_eq!(fixture.create(request).await, Err(catalogue::too_many_tags(51, 50)));
    assert!(fixture.image("b").await.is_err());
}

#[tokio::test]
async fn what_is_not_there_has_no_tags() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let image = fixture.arn("b");
    let (name, foreign) = (image.to_string(), fixture.arn("a").to_string().replace("000000000000", "999999999999"));
    let function = "arn:aws:lambda:us-east-1:000000000000:function:f";
    assert_eq!(listed(&fixture, &name).await, Err(catalogue::unknown_image(&image)));
    assert_eq!(tag(&fixture, &name, tags(&[])).await, Err(catalogue::unknown_image(&image)));
    assert_eq!(untag(&fixture, &name, &["a"]).await, Err(catalogue::unknown_image(&image)));
    assert_eq!(listed(&fixture, &foreign).await, Err(catalogue::unknown_image(&foreign)));
    assert_eq!(listed(&fixture, function).await, Err(catalogue::unknown_taggable(function)));
}

#[tokio::test]
async fn what_is_being_deleted_is_not_tagged() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let arn = fixture.arn("a").to_string();
    fixture.host.hold(Call::RemoveImage);
    fixture.delete_image("a").await.unwrap();
    assert_eq!(listed(&fixture, &arn).await, Ok(tags(&[])));
    let leaving = Err(catalogue::resource_being_deleted(&arn));
    assert_eq!(tag(&fixture, &arn, tags(&[("a", "")])).await, leaving);
    assert_eq!(untag(&fixture, &arn, &["a"]).await, leaving);
    fixture.host.release(Call::RemoveImage);
    until("it is gone", async || fixture.image("a").await.is_err()).await;
    // A new image of the name begins without them.
    fixture.ready_image("a").await;
    assert_eq!(listed(&fixture, &arn).await, Ok(tags(&[])));
    fixture.run(run_request(fixture.arn("a"))).await.unwrap();
}

#[tokio::test]
async fn many_taggers_lose_nothing() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let arn = fixture.arn("a").to_string();
    let taggers: Vec<_> = (0..TAGS_MAX)
        .map(|index| {
            let (control, caller) = (fixture.control().clone(), fixture.caller.clone());
            let tags = [(format!("k{index}"), String::new())].into();
            let request = TagResourceRequest { resource: arn.clone(), tags };
            tokio::spawn(async move { control.tag_resource(&caller, request).await })
        })
        .collect();
    for tagger in taggers {
        tagger.await.unwrap().unwrap();
    }
    assert_eq!(listed(&fixture, &arn).await.unwrap().len(), TAGS_MAX);
}
