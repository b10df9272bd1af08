//! A mobile node as a running agent, in a guest on a host that is not ours: what `mobility-proto` decides about its link and
//! its binding, with sockets, a clock and a tunnel interface that has the home address. Programs that use the home address
//! notice nothing of a move.
//!
//! It follows one interface: its carrier, and the routers that are heard there. Where none is, but the interface has an IPv4
//! address from elsewhere (as of a DHCP client) and a way from there, it reaches its home agent in UDP, through NATs too. It
//! changes nothing of what others have told the kernel, and [`end`](MobileNode::end) takes back what it has told; so does the next
//! start after a crash.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use mobility_proto::auth::SharedKey;
use mobility_proto::discovery::{Heard, Router, solicit_neighbor, solicit_routers};
use mobility_proto::movement::{self, Movement};
use mobility_proto::node::{self, Output, care_of_address};
use mobility_proto::wire::BindingLifetime;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;

pub use mobility_proto::node::Happened;

use crate::agent::{Orders, packet_of, packet_with, send_whole, sleep_until, unix_ns};
use crate::error::{AgentError, opening};
use crate::links::{Answered, Carrier, Changes, Links, OF_MOBILE_NODE};
use crate::plane::{INNER_MTU, Plane, Side};
use crate::raw::{ICMPV6, MOBILITY_HEADER, ROUTING, RawSocket, WHOLE_PACKETS};
use crate::udp::{self, Datagrams};

/// How long the kernel may take until it answers for a new address, which it sees to beside other work. A packet that comes
/// before is lost.
const ANSWER: Duration = Duration::from_millis(50);
/// How long the home agent has to hear that the node has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a mobile node is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address that it keeps.
    pub home_address: Ipv6Addr,
    /// Its home agent's address.
    pub home_agent: Ipv6Addr,
    /// Its home agent's IPv4 address, for links that have IPv4 only.
    pub home_agent_ipv4: Option<Ipv4Addr>,
    /// The name that the home agent knows it by (RFC 4283), 1 to 254 bytes.
    pub name: String,
    /// The key that it shares with its home agent.
    pub key: SharedKey,
    /// The interface by which it is attached, wherever it is.
    pub link: String,
    /// The tunnel interface's name, at most 15 bytes.
    pub interface: String,
}

#[derive(Debug)]
enum Command {
    End(oneshot::Sender<()>),
}

/// A running mobile node.
#[derive(Debug, Clone)]
pub struct MobileNode {
    orders: Orders<Command>,
    events: broadcast::Sender<Happened>,
}

impl MobileNode {
    /// Starts it, after removing what a crash has left.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        let any = Ipv6Addr::UNSPECIFIED;
        let links = Links::connect(OF_MOBILE_NODE).map_err(opening("rtnetlink"))?;
        let changes = Changes::open().map_err(opening("rtnetlink"))?;
        let carrier = links.carrier(&config.link, changes).await?;
        let answered = Answered::open().map_err(opening("rtnetlink"))?;
        let open = |protocol, what: &str| RawSocket::open(protocol, any, 0).map_err(opening(what));
        let signalling = open(MOBILITY_HEADER, "a socket for signalling")?;
        let routed = open(ROUTING, "a socket for signalling behind a routing header")?;
        let sender = open(WHOLE_PACKETS, "a socket to send by")?;
        let neighbours = open(ICMPV6, "a socket for router advertisements")?;
        let what = format!("a socket for router advertisements on {}", config.link);
        neighbours.only_from_link(&config.link).map_err(opening(&what))?;
        let plane = Plane::open(&config.interface, any)
            .and_then(|plane| plane.refuse_from(&[], &[]).map(|()| plane))
            .map_err(opening(&format!("the tunnel interface {}", config.interface)))?;
        links.clear().await?;
        let tunnel = links.index(&config.interface).await?;
        links.up(tunnel, INNER_MTU.into()).await?;
        links.attach_home(tunnel, config.home_address, config.home_agent).await?;
        let node = node::MobileNode::new(node::Config {
            home_address: config.home_address,
            home_agent: config.home_agent,
            name: config.name.clone().into_bytes(),
            key: config.key.clone(),
            lifetime: BindingLifetime::from_secs(300),
        });
        let (commands, inbox) = mpsc::channel(4);
        let (events, _) = broadcast::channel(256);
        let agent = Agent {
            config,
            node,
            movement: Movement::default(),
            care_of: None,
            ipv4: None,
            datagrams: Datagrams::default(),
            carrier,
            answered,
            sockets: Sockets { signalling, routed, neighbours },
            sender,
            plane,
            links,
            events: events.clone(),
            start: Instant::now(),
        };
        // Ends when it is told to, or when nobody can give it orders any more, and takes back what the kernel was told.
        tokio::spawn(agent.run(inbox));
        Ok(Self { orders: Orders(commands), events })
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Happened> {
        self.events.subscribe()
    }

    /// Ends it: the binding, and what the kernel was told.
    pub async fn end(&self) {
        let _ = self.orders.ask(Command::End).await;
    }
}

/// What is received by.
struct Sockets {
    /// From where there is no care-of address to route to.
    signalling: RawSocket,
    routed: RawSocket,
    neighbours: RawSocket,
}

/// What has been received.
enum Received {
    Signalling { protocol: u32, from: Ipv6Addr, payload: Vec<u8> },
    Neighbour(Option<Heard>),
}

impl Sockets {
    async fn receive(&self, buffers: &mut [[u8; 2048]; 3]) -> std::io::Result<Received> {
        let [signalling, routed, neighbours] = buffers;
        let told = |protocol, from, payload: &[u8]| Received::Signalling {
            protocol,
            from,
            payload: payload.to_vec(),
        };
        tokio::select! {
            received = self.neighbours.receive(neighbours) => {
                received.map(|(len, from)| Received::Neighbour(Heard::parse(from, &neighbours[..len])))
            }
            received = self.routed.receive(routed) => {
                received.map(|(len, from)| told(ROUTING, from, &routed[..len]))
            }
            received = self.signalling.receive(signalling) => {
                received.map(|(len, from)| told(MOBILITY_HEADER, from, &signalling[..len]))
            }
        }
    }
}

struct Agent {
    config: Config,
    node: node::MobileNode,
    movement: Movement,
    /// Where it is, as the kernel has been told, and on which interface.
    care_of: Option<(u32, Ipv6Addr)>,
    /// Where it is over IPv4, while it is.
    ipv4: Option<Ipv4Addr>,
    datagrams: Datagrams,
    carrier: Carrier,
    answered: Answered,
    sockets: Sockets,
    sender: RawSocket,
    plane: Plane,
    links: Links,
    events: broadcast::Sender<Happened>,
    start: Instant,
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        if self.carrier.is_up() {
            self.movement.link_up(self.start.elapsed());
        }
        let ended = self.follow(&mut inbox).await;
        if let Some(Some(_)) = &ended {
            self.say_farewell().await;
        }
        if let Some((index, care_of)) = self.care_of.take() {
            self.links.remove_care_of(index, care_of).await;
        }
        if let Err(error) = self.links.clear().await {
            tracing::warn!("not all that the mobile node told the kernel could be taken back: {error}");
        }
        drop(self);
        if let Some(Some(reply)) = ended {
            let _ = reply.send(());
        }
    }

    /// Until it is told to end, and by whom; or until it cannot go on.
    async fn follow(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Option<Option<oneshot::Sender<()>>> {
        let mut buffers = [[0; 2048]; 3];
        loop {
            self.settle().await;
            let deadline = self.node.deadline().into_iter().chain(self.movement.deadline()).min();
            let deadline = deadline.map(|deadline| self.start + deadline);
            // The link before what is heard on it: that may be of another one.
            tokio::select! {
                biased;
                command = inbox.recv() => return Some(command.map(|Command::End(reply)| reply)),
                change = self.carrier.came_up() => match change {
                    Some(()) => {
                        // The same address on another link is another one.
                        self.ipv4 = None;
                        self.movement.link_up(self.start.elapsed());
                    }
                    None => {
                        tracing::error!("the mobile node ends: the kernel tells of its links no more");
                        return None;
                    }
                },
                // Only what comes after a care-of address was added is waited for.
                Some(_) = self.answered.next() => {}
                received = self.sockets.receive(&mut buffers) => match received {
                    Ok(received) => self.received(received),
                    Err(error) => {
                        tracing::error!("the mobile node ends: receiving: {error}");
                        return None;
                    }
                },
                received = self.datagrams.receive() => self.take(received),
                side = self.plane.ready() => match side {
                    Ok(side) => self.pass(side),
                    Err(error) => {
                        tracing::error!("the mobile node ends: its tunnel interface: {error}");
                        return None;
                    }
                },
                () = sleep_until(deadline) => {}
            }
            self.movement.handle_timeout(self.start.elapsed());
            self.node.handle_timeout(self.start.elapsed(), unix_ns());
        }
    }

    fn received(&mut self, received: Received) {
        match received {
            Received::Neighbour(Some(Heard::Router(router)))
                if router.prefix.contains(self.config.home_address) =>
            {
                tracing::debug!("{} says that this is the home link, which there is not", router.address);
            }
            Received::Neighbour(heard) => {
                if let Some(heard) = heard {
                    self.movement.heard(self.start.elapsed(), heard);
                }
            }
            Received::Signalling { protocol, from, payload } => {
                let Some((_, own)) = self.care_of else { return };
                let packet = match protocol {
                    ROUTING => packet_with(ROUTING, from, own, &payload),
                    _ => packet_of(from, own, &payload),
                };
                if let Err(refusal) = self.node.handle_packet(self.start.elapsed(), unix_ns(), &packet) {
                    tracing::debug!("signalling from {from} was not believed: {refusal}");
                }
            }
        }
    }

    fn pass(&mut self, side: Side) {
        match side {
            Side::Kernel(count) => {
                let Self { plane, node, .. } = self;
                plane.taken(count).for_each(|packet| node.handle_own(packet.to_vec()));
            }
            Side::Tunnel => {
                for (from, packet) in self.plane.tunnelled() {
                    self.node.handle_tunnelled(from, packet);
                }
            }
        }
    }

    /// Does what link and node want done.
    async fn settle(&mut self) {
        while let Some(output) = self.movement.poll_output() {
            match output {
                movement::Output::SolicitRouters => self.ask(solicit_routers()),
                movement::Output::SolicitNeighbor(router) => self.ask(solicit_neighbor(router)),
                movement::Output::Settle(router) => self.move_to(&router).await,
                movement::Output::TryIpv4 => self.move_to_ipv4().await,
            }
        }
        self.drain();
        self.plane.flush().await;
    }

    /// Does what the node wants done.
    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Send(packet) => send_whole(&self.sender, &packet),
                Output::SendDatagram(packet) => self.send_datagram(&packet),
                Output::Tunnel(packet) if self.ipv4.is_some() => self.send_datagram(&packet),
                Output::Tunnel(packet) => self.plane.send(self.config.home_agent, &packet),
                Output::Deliver(packet) => self.plane.deliver(packet),
                Output::Event(happened) => {
                    match happened {
                        Happened::Registered(care_of) => {
                            tracing::info!("registered at {}", care_of.to_canonical())
                        }
                        other => tracing::info!("{other:?}"),
                    }
                    // Nobody may be listening.
                    let _ = self.events.send(happened);
                }
            }
        }
    }

    fn ask(&self, (to, packet): (Ipv6Addr, Vec<u8>)) {
        if let Err(error) = self.sender.send(&packet, to, self.carrier.index()) {
            tracing::debug!("a solicitation on {} was lost: {error}", self.config.link);
        }
    }

    async fn move_to(&mut self, router: &Router) {
        let (index, care_of) =
            (self.carrier.index(), care_of_address(router.prefix, self.config.home_address));
        if let Err(error) = self.links.attach_care_of(index, care_of, router).await {
            tracing::warn!("the link of {} cannot be used: {error}", router.address);
            return;
        }
        let answers = async { while self.answered.next().await.is_some_and(|address| address != care_of) {} };
        if tokio::time::timeout(ANSWER, answers).await.is_err() {
            tracing::debug!("the kernel has not said that it answers for {care_of}");
        }
        let before = self.care_of.replace((index, care_of));
        (self.ipv4, self.datagrams) = (None, Datagrams::default());
        self.node.attach(self.start.elapsed(), unix_ns(), care_of);
        if let Some((index, before)) = before.filter(|before| *before != (index, care_of)) {
            // After the update is out: nothing comes there any more.
            self.drain();
            self.links.remove_care_of(index, before).await;
        }
    }

    /// Where no router is heard: goes to where the link is over IPv4, unless it is there already.
    async fn move_to_ipv4(&mut self) {
        let Some(home_agent) = self.config.home_agent_ipv4 else { return };
        let (datagrams, own) = match Datagrams::connect(&self.config.link, home_agent) {
            Ok(connected) => connected,
            Err(error) => {
                tracing::trace!("no way over IPv4 by {}: {error}", self.config.link);
                return;
            }
        };
        if self.ipv4 == Some(own) {
            return;
        }
        (self.ipv4, self.datagrams) = (Some(own), datagrams);
        self.node.attach(self.start.elapsed(), unix_ns(), own.to_ipv6_mapped());
        if let Some((index, before)) = self.care_of.take() {
            self.links.remove_care_of(index, before).await;
        }
    }

    /// Takes what has come in UDP, from the home agent alone.
    fn take(&mut self, received: Vec<(SocketAddrV4, Vec<u8>)>) {
        for (_, packet) in received {
            if !udp::is_signalling(&packet, self.config.home_address) {
                self.node.handle_tunnelled(self.config.home_agent, packet);
                continue;
            }
            if let Err(refusal) = self.node.handle_packet(self.start.elapsed(), unix_ns(), &packet) {
                tracing::debug!("signalling in UDP was not believed: {refusal}");
            }
        }
    }

    fn send_datagram(&self, packet: &[u8]) {
        if let Some(home_agent) = self.config.home_agent_ipv4 {
            self.datagrams.send(SocketAddrV4::new(home_agent, udp::PORT), packet);
        }
    }

    /// Ends the binding, if the home agent can be told in time.
    async fn say_farewell(&mut self) {
        self.node.end(self.start.elapsed(), unix_ns());
        let mut buffers = [[0; 2048]; 3];
        let told = async {
            loop {
                self.settle().await;
                if self.node.is_over() {
                    return;
                }
                tokio::select! {
                    received = self.sockets.receive(&mut buffers) => {
                        if let Ok(received @ Received::Signalling { .. }) = received {
                            self.received(received);
                        }
                    }
                    received = self.datagrams.receive() => self.take(received),
                }
            }
        };
        let _ = tokio::time::timeout(FAREWELL, told).await;
    }
}
