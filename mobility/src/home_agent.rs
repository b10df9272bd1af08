//! The home agent and local mobility anchor as a running agent: what `mobility-proto` decides about bindings, with sockets,
//! a clock and a tunnel interface. Whom it serves is said by its owner through [`HomeAgent`].

mod binding;
mod keeping;
mod ways;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use mobility_proto::anchor::{self, Anchor, Authorization, AuthorizeError, Output, TunnelEnd};
use mobility_proto::inner::{Inner, end_marker};
use mobility_proto::wire::{BindingLifetime, Ipv6Prefix, TransientLifetime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::agent::{Ends, Orders, packet_of, packet_with, send_whole, sleep_until, unix_ns};
use crate::checks::check_ipv4_forwarding;
use crate::data_plane::{DataPlane, PlaneChoice};
use crate::error::{AgentError, opening};
use crate::links::OF_HOME_AGENT;
use crate::plane::{Plane, Side};
use crate::raw::{DESTINATION_OPTIONS, RawSocket, WHOLE_PACKETS};
use crate::tunnels::Own;
use crate::udp::{self, Datagrams};
use keeping::{Keeping, Outgoing};
use ways::Ways;

pub use binding::Binding;
pub use keeping::{Change, Keeper};

/// For how long packets that the kernel is forwarding at the moment when a route is switched may still be on their way out.
const FENCE: Duration = Duration::from_millis(5);

/// How a home agent is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its address, for signalling and tunnels.
    pub address: Ipv6Addr,
    /// The prefixes of which mobile nodes have a part, of IPv6 or [standing for IPv4](Ipv6Prefix::of_ipv4): what is for them
    /// comes to this host.
    pub prefixes: Vec<Ipv6Prefix>,
    /// The tunnel interface's name, at most 15 bytes.
    pub interface: String,
    /// Who carries packets.
    pub plane: PlaneChoice,
    /// An address for tunnels alone, in the network of `address`, that nobody has: [`DataPlane::Seg6`] needs it.
    pub user_plane: Option<Ipv6Addr>,
    /// Its IPv4 address, for mobile nodes that have IPv4 only.
    pub ipv4_address: Option<Ipv4Addr>,
    /// How many mobile nodes it serves at most.
    pub max_nodes: usize,
    /// How often it has started.
    pub restart_counter: u32,
}

#[derive(Debug)]
enum Command {
    Authorize(Box<Authorization>, oneshot::Sender<Result<(), AuthorizeError>>),
    Withdraw(u32),
    Restore { node: String, floor: u64, active: Option<u32>, user_plane: Option<Ipv6Addr> },
    RestoreMobileNode { node: String, care_of: Ipv6Addr },
    Binding(String, oneshot::Sender<Option<Binding>>),
    Now(String, oneshot::Sender<Option<Change>>),
    KeepOnly(oneshot::Sender<()>),
    End(oneshot::Sender<()>),
}

/// A running home agent. [`end`](Self::end) takes back what it told the kernel; after a crash that is taken over by the next
/// start.
#[derive(Debug, Clone)]
pub struct HomeAgent {
    orders: Orders<Command>,
    plane: DataPlane,
}

impl HomeAgent {
    /// Starts it. Nobody hears of a binding before the keeper, if there is one, has kept it.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn start(config: Config, keeper: Option<Box<dyn Keeper>>) -> Result<Self, AgentError> {
        let Config { address, user_plane, .. } = config;
        if config.prefixes.iter().any(|prefix| prefix.as_ipv4().is_some()) {
            check_ipv4_forwarding()?;
        }
        let own = Own { address, user_plane, interface: config.interface };
        let Ends { links, signalling, plane, tunnels, index } =
            Ends::open(OF_HOME_AGENT, &own, config.plane).await?;
        let user_plane = tunnels.user_plane();
        let ways = Ways::start(links, tunnels, &config.prefixes, index).await?;
        plane
            .refuse_from(&[], &ways.taken_twice())
            .map_err(opening("tunnels to all but the kernel's peers"))?;
        let anchor = Anchor::new(anchor::Config {
            address,
            user_plane,
            max_nodes: config.max_nodes,
            max_lifetime: BindingLifetime::from_secs(600),
            max_transient: TransientLifetime::from_ms(25_500),
            restart_counter: config.restart_counter,
            started_unix_ns: unix_ns(),
        });
        let address = config.address;
        let from_nodes = RawSocket::open(DESTINATION_OPTIONS, address, 0)
            .map_err(opening("a socket for mobile nodes' signalling"))?;
        let sender = RawSocket::open(WHOLE_PACKETS, address, 0).map_err(opening("a socket to send by"))?;
        let datagrams = match config.ipv4_address {
            Some(address) => Datagrams::listen(address)?,
            None => Datagrams::default(),
        };
        let (commands, inbox) = mpsc::channel(64);
        let (markers, start) = (VecDeque::new(), Instant::now());
        let kind = ways.plane();
        let keeping = keeper.map(Keeping::start).transpose().map_err(opening("a thread to keep bindings"))?;
        let agent = Agent {
            address,
            anchor,
            signalling,
            from_nodes,
            sender,
            datagrams,
            plane,
            ways,
            keeping,
            markers,
            start,
        };
        // Ends when it is told to, or when nobody can give it orders any more, and takes back what the kernel was told.
        tokio::spawn(agent.run(inbox));
        Ok(Self { orders: Orders(commands), plane: kind })
    }

    /// Who carries packets.
    #[must_use]
    pub fn plane(&self) -> DataPlane {
        self.plane
    }

    /// All bindings of before are restored: what a crash has left in the kernel for others is removed.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn keep_only(&self) -> Result<(), AgentError> {
        self.orders.ask(Command::KeepOnly).await
    }

    /// Ends it and takes back what it told the kernel.
    pub async fn end(&self) {
        let _ = self.orders.ask(Command::End).await;
    }

    /// From now on this registrant may register this mobile node.
    ///
    /// # Errors
    /// What the anchor says, inside; [`AgentError::Ended`].
    pub async fn authorize(
        &self,
        authorization: Authorization,
    ) -> Result<Result<(), AuthorizeError>, AgentError> {
        self.orders.ask(|reply| Command::Authorize(Box::new(authorization), reply)).await
    }

    /// The key with this SPI is worth nothing from now on.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn withdraw(&self, spi: u32) -> Result<(), AgentError> {
        self.orders.tell(Command::Withdraw(spi)).await
    }

    /// What was so before a restart: epochs up to `floor` have been bound, and the binding was made with the key `active`, by
    /// a gateway that took tunnelled packets at `user_plane`.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn restore(
        &self,
        node: &str,
        floor: u64,
        active: Option<u32>,
        user_plane: Option<Ipv6Addr>,
    ) -> Result<(), AgentError> {
        self.orders.tell(Command::Restore { node: node.to_owned(), floor, active, user_plane }).await
    }

    /// What was so before a restart: this mobile node, which registers itself, was reached there.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn restore_mobile_node(&self, node: &str, care_of: Ipv6Addr) -> Result<(), AgentError> {
        self.orders.tell(Command::RestoreMobileNode { node: node.to_owned(), care_of }).await
    }

    /// What is known of a mobile node at this moment, whether it is kept already or not.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn now(&self, node: &str) -> Result<Option<Change>, AgentError> {
        self.orders.ask(|reply| Command::Now(node.to_owned(), reply)).await
    }

    /// Where a mobile node is reached.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn binding(&self, node: &str) -> Result<Option<Binding>, AgentError> {
        self.orders.ask(|reply| Command::Binding(node.to_owned(), reply)).await
    }
}

struct Agent {
    address: Ipv6Addr,
    anchor: Anchor,
    signalling: RawSocket,
    /// Mobile nodes' own, with their Home Address options.
    from_nodes: RawSocket,
    sender: RawSocket,
    /// Those of mobile nodes that have IPv4 only.
    datagrams: Datagrams,
    plane: Plane,
    ways: Ways,
    keeping: Option<Keeping>,
    /// End markers that are to be sent, when and where.
    markers: VecDeque<(Instant, TunnelEnd, Vec<u8>)>,
    start: Instant,
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let [mut buffer, mut from_nodes] = [(); 2].map(|()| vec![0; 4096]);
        let ended = loop {
            let deadline = self.anchor.deadline().map(|deadline| self.start + deadline);
            let deadline = deadline.into_iter().chain(self.markers.front().map(|(at, ..)| *at)).min();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::End(reply)) => break Some(reply),
                    Some(command) => self.command(command).await,
                    None => break None,
                },
                received = self.signalling.receive(&mut buffer) => match received {
                    Ok((len, from)) => self.signalled(from, &packet_of(from, self.address, &buffer[..len])),
                    Err(error) => {
                        tracing::error!("the home agent ends: receiving signalling: {error}");
                        break None;
                    }
                },
                received = self.from_nodes.receive(&mut from_nodes) => match received {
                    Ok((len, from)) => {
                        let packet = packet_with(DESTINATION_OPTIONS, from, self.address, &from_nodes[..len]);
                        self.signalled(from, &packet);
                    }
                    Err(error) => {
                        tracing::error!("the home agent ends: receiving signalling: {error}");
                        break None;
                    }
                },
                received = self.datagrams.receive() => self.take(received).await,
                side = self.plane.ready() => match side {
                    Ok(side) => self.pass(side).await,
                    Err(error) => {
                        tracing::error!("the home agent ends: its tunnel interface: {error}");
                        break None;
                    }
                },
                () = keeping::kept(&mut self.keeping) => {}
                () = sleep_until(deadline) => {}
            }
            let released: Vec<_> = self.keeping.iter_mut().flat_map(Keeping::released).collect();
            released.iter().for_each(|packet| self.send_now(packet));
            self.anchor.handle_timeout(self.start.elapsed());
            self.drain().await;
            while self.markers.front().is_some_and(|(at, ..)| *at <= Instant::now())
                && let Some((_, to, marker)) = self.markers.pop_front()
            {
                self.send(to, &marker);
            }
        };
        if let Err(error) = self.ways.end().await {
            tracing::warn!("not all that the home agent told the kernel could be taken back: {error}");
        }
        drop(self);
        if let Some(reply) = ended {
            let _ = reply.send(());
        }
    }

    fn signalled(&mut self, from: Ipv6Addr, packet: &[u8]) {
        if let Err(refusal) = self.anchor.handle_packet(self.start.elapsed(), unix_ns(), packet) {
            tracing::debug!("signalling from {from} was not believed: {refusal}");
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Authorize(authorization, reply) => {
                let _ = reply.send(self.anchor.authorize(*authorization));
            }
            Command::Withdraw(spi) => self.anchor.withdraw(spi),
            Command::Restore { node, floor, active, user_plane } => {
                self.anchor.restore(self.start.elapsed(), node.as_bytes(), floor, active, user_plane);
            }
            Command::RestoreMobileNode { node, care_of } => {
                self.anchor.restore_mobile_node(self.start.elapsed(), node.as_bytes(), care_of);
            }
            Command::Binding(node, reply) => {
                let user_plane = self.anchor.user_plane(node.as_bytes());
                let found = self.anchor.binding(node.as_bytes());
                let _ =
                    reply.send(found.map(|(care_of, epoch)| Binding { node, care_of, user_plane, epoch }));
            }
            Command::Now(node, reply) => {
                let kept = self.anchor.kept(node.as_bytes());
                let _ = reply.send(kept.map(|kept| Change::of(node, kept)));
            }
            Command::KeepOnly(reply) => {
                let bound = self.anchor.bound().collect();
                if let Err(error) = self.ways.keep_only(&bound).await {
                    tracing::warn!("what a crash has left is not all removed: {error}");
                }
                let _ = reply.send(());
            }
            Command::End(_) => {}
        }
    }

    async fn pass(&mut self, side: Side) {
        match side {
            Side::Kernel(count) => {
                let way = |packet: &[u8]| self.anchor.care_of(Inner::parse(packet)?.destination);
                self.plane.forward(count, |packet| match way(packet)? {
                    TunnelEnd::Ipv6(to) => Some(to),
                    TunnelEnd::Udp(to) => {
                        self.datagrams.send(to, packet);
                        None
                    }
                });
            }
            Side::Tunnel => {
                for (from, packet) in self.plane.tunnelled() {
                    self.tunnelled(TunnelEnd::Ipv6(from), packet);
                }
                self.plane.flush().await;
            }
        }
    }

    /// Takes what has come over UDP: signalling for the home agent itself, and tunnelled packets.
    async fn take(&mut self, received: Vec<(SocketAddrV4, Vec<u8>)>) {
        for (from, packet) in received {
            if !udp::is_signalling(&packet, self.address) {
                self.tunnelled(TunnelEnd::Udp(from), packet);
                continue;
            }
            let taken = self.anchor.handle_datagram(self.start.elapsed(), unix_ns(), from, &packet);
            if let Err(refusal) = taken {
                tracing::debug!("signalling from {from} was not believed: {refusal}");
            }
        }
        self.plane.flush().await;
    }

    fn tunnelled(&mut self, from: TunnelEnd, packet: Vec<u8>) {
        let Some(inner) = Inner::parse(&packet).filter(|inner| self.anchor.accepts(inner.source, from))
        else {
            return;
        };
        // From one mobile node to another without a way through the kernel.
        match self.anchor.care_of(inner.destination) {
            Some(to) => self.send(to, &packet),
            None => self.plane.deliver(packet),
        }
    }

    fn send(&mut self, to: TunnelEnd, packet: &[u8]) {
        match to {
            TunnelEnd::Ipv6(to) => self.plane.send(to, packet),
            TunnelEnd::Udp(to) => self.datagrams.send(to, packet),
        }
    }

    /// Sends signalling, unless it has to wait for what must be kept before.
    fn send_out(&mut self, packet: Outgoing) {
        let packet = match &mut self.keeping {
            Some(keeping) => keeping.send(packet),
            None => Some(packet),
        };
        packet.iter().for_each(|packet| self.send_now(packet));
    }

    fn send_now(&self, packet: &Outgoing) {
        match packet {
            Outgoing::Whole(packet) => send_whole(&self.sender, packet),
            Outgoing::Datagram(to, packet) => self.datagrams.send(*to, packet),
        }
    }

    async fn drain(&mut self) {
        while let Some(output) = self.anchor.poll_output() {
            let done = match output {
                Output::Send(packet) => {
                    self.send_out(Outgoing::Whole(packet));
                    continue;
                }
                Output::SendDatagram { to, packet } => {
                    self.send_out(Outgoing::Datagram(to, packet));
                    continue;
                }
                Output::Keep { node, kept } => {
                    if let Some(keeping) = &mut self.keeping {
                        keeping.keep(Change::of(String::from_utf8_lossy(&node).into_owned(), kept));
                    }
                    continue;
                }
                // To this program the binding cache itself says where packets go.
                Output::SwitchRoute { prefix, place, before } => {
                    let done = self.ways.switch(prefix, place).await;
                    if let Some(before) = before {
                        let fence = if self.ways.is_in_kernel() { FENCE } else { Duration::ZERO };
                        let marker = end_marker(self.address, prefix);
                        self.markers.push_back((Instant::now() + fence, before.tunnel_end(), marker));
                    }
                    done
                }
                Output::RemoveRoute { prefix } => self.ways.remove(prefix).await,
                Output::TakeFrom { prefix, places } => {
                    let gateways = places.iter().filter_map(|place| place.user_plane);
                    gateways.for_each(|gateway| self.plane.announce(gateway));
                    let done = self.ways.take_from(prefix, &places).await;
                    // What the kernel takes as well is the kernel's.
                    if let Err(error) = self.plane.refuse_from(&[], &self.ways.taken_twice()) {
                        tracing::warn!("the kernel's packets come here too: {error}");
                    }
                    done
                }
            };
            if let Err(error) = done {
                tracing::warn!("a binding's way through the kernel stays as it was: {error}");
            }
        }
    }
}
