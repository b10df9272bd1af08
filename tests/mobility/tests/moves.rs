//! A guest moves between two platforms: real packets, real kernel, the real agents.

use std::time::{Duration, Instant};

use anyhow::Result;
use mobility::access::Happened;
use mobility_lab::network::{NODE, grant};
use mobility_lab::{Network, Stream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn until(
    events: &mut tokio::sync::broadcast::Receiver<mobility::access::Event>,
    happened: Happened,
) -> Result<()> {
    timeout(Duration::from_secs(10), async {
        while events.recv().await?.happened != happened {}
        Ok(())
    })
    .await?
}

#[test]
fn a_guest_moves_and_loses_nothing() {
    let network = Network::start(Duration::from_millis(40)).unwrap();
    runtime().block_on(async {
        let [a, b] = &network.platforms;
        let (first, second) = (&a.gateway.handle, &b.gateway.handle);
        let (mut at_first, mut at_second) = (first.events(), second.events());
        network.authorize(0, 1).await.unwrap();
        network.resume(0).unwrap();
        first.serve(grant(1)).await.unwrap();
        until(&mut at_first, Happened::Registered).await.unwrap();

        let stream = Stream::start(
            &network.correspondent,
            &network.guest,
            Network::target(4000),
            Duration::from_millis(5),
        )
        .unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        network.authorize(1, 2).await.unwrap();
        second.expect(grant(2), a.address).await.unwrap();
        until(&mut at_second, Happened::Prepared).await.unwrap();
        network.pause(0).unwrap();
        first.forward(grant(2), b.address, Instant::now()).await.unwrap();
        until(&mut at_second, Happened::Forwarded).await.unwrap();
        network.resume(1).unwrap();
        second.arrived(NODE).await.unwrap();
        until(&mut at_second, Happened::Registered).await.unwrap();
        until(&mut at_first, Happened::Revoked).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        println!("{heard:?}");
        assert!(heard.sent > 200, "{heard:?}");
        assert_eq!((heard.lost(), heard.reordered, heard.duplicates), (0, 0, 0), "{heard:?}");
        assert_eq!(network.home_agent.handle.binding(NODE).await.unwrap().unwrap().care_of, b.address);
    });
}
