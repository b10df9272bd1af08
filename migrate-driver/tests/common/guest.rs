//! A guest without an operating system: a boot sector that writes a counter to its disk, and says so.
//!
//! SeaBIOS loads it from the first virtio-blk disk. It fills one 4 KiB page with the counter, writes it by INT 13h
//! AH=43h to slot `counter % SLOTS`, then prints `W` (or `E` on an error) and the counter in hex on the serial port, waits
//! and goes on. So a line `W0000002a` means: the disk has acknowledged the page of 0x2a.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Slots that the guest writes in turn.
pub(crate) const SLOTS: u64 = 1024;
/// Size of a slot, and of each write.
pub(crate) const SLOT_BYTES: u64 = 4096;
/// Where the slots begin.
pub(crate) const AREA_START: u64 = 1 << 20;
/// The whole disk: no multiple of 64 KiB or 4 KiB, to meet the edges.
pub(crate) const DISK_BYTES: u64 = AREA_START + SLOTS * SLOT_BYTES + 512;

/// How long the guest waits after each write: reads of I/O port 0x80, about a microsecond each.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As fast as it can, thousands of writes a second.
    Full,
    /// Some hundreds of writes a second.
    Steady,
}

/// `as --32` with `.code16`, linked at 0x7c00:
/// ```text
/// 7c00  cli; xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0x7c00; cld; sti
/// 7c0e  mov [drive],dl                 ; the BIOS says which drive we came from
/// 7c12 again:
///       inc dword [counter]
///       mov eax,[counter]; mov di,0x8000; mov cx,1024; rep stosd    ; fill the page at 0x8000
///       mov eax,[counter]; and eax,1023; shl eax,3; add eax,2048    ; LBA = 2048 + slot * 8
///       mov [lba],eax
///       mov si,dap; mov dl,[drive]; mov ax,0x4300; int 0x13         ; extended write
///       mov bl,'W'; jnc +2; mov bl,'E'
///       mov al,bl; call putc
///       mov ebp,[counter]; mov cx,8
/// 7c5b digit:
///       rol ebp,4; mov ax,bp; and al,15; add al,'0'; cmp al,'9'; jbe +2; add al,39; call putc
///       loop digit
///       mov al,10; call putc
///       mov ecx,[pace]
/// 7c7a wait:
///       jecxz again; in al,0x80; dec ecx; jmp wait
/// 7c83 putc:
///       mov ah,al; mov dx,0x3fd
/// 7c88  in al,dx; test al,0x20; je 7c88; mov al,ah; mov dx,0x3f8; out dx,al; ret
/// 7c94 drive: db 0
/// 7c95 counter: dd 0
/// 7c99 pace: dd 0
/// 7c9d dap: db 16,0; dw 8; dw 0x8000,0  ; 8 sectors from 0:8000
/// 7ca5 lba: dq 0
/// ```
const CODE: [u8; 173] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfc, 0xfb, 0x88, 0x16, 0x94,
    0x7c, 0x66, 0xff, 0x06, 0x95, 0x7c, 0x66, 0xa1, 0x95, 0x7c, 0xbf, 0x00, 0x80, 0xb9, 0x00, 0x04, 0x66,
    0xf3, 0xab, 0x66, 0xa1, 0x95, 0x7c, 0x66, 0x25, 0xff, 0x03, 0x00, 0x00, 0x66, 0xc1, 0xe0, 0x03, 0x66,
    0x05, 0x00, 0x08, 0x00, 0x00, 0x66, 0xa3, 0xa5, 0x7c, 0xbe, 0x9d, 0x7c, 0x8a, 0x16, 0x94, 0x7c, 0xb8,
    0x00, 0x43, 0xcd, 0x13, 0xb3, 0x57, 0x73, 0x02, 0xb3, 0x45, 0x88, 0xd8, 0xe8, 0x30, 0x00, 0x66, 0x8b,
    0x2e, 0x95, 0x7c, 0xb9, 0x08, 0x00, 0x66, 0xc1, 0xc5, 0x04, 0x89, 0xe8, 0x24, 0x0f, 0x04, 0x30, 0x3c,
    0x39, 0x76, 0x02, 0x04, 0x27, 0xe8, 0x15, 0x00, 0xe2, 0xeb, 0xb0, 0x0a, 0xe8, 0x0e, 0x00, 0x66, 0x8b,
    0x0e, 0x99, 0x7c, 0x67, 0xe3, 0x95, 0xe4, 0x80, 0x66, 0x49, 0xeb, 0xf7, 0x88, 0xc4, 0xba, 0xfd, 0x03,
    0xec, 0xa8, 0x20, 0x74, 0xfb, 0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xc3, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x08, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00,
];
const PACE_AT: usize = 0x99;

/// In place of the write above, for a guest that does more than that: `call routine`, 9 nops. The routine follows the code, at
/// 7cad, and ends with the carry flag of its write.
const CALL: [u8; 12] = [0xe8, 0x6e, 0x00, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];

/// ```text
///       mov si,dap; mov dl,[drive]; mov ax,0x4300; int 0x13; jc out
///       mov si,dap; mov dl,[drive]; inc dl; mov ax,0x4300; int 0x13
/// out:  ret
/// ```
const WRITE_BOTH_DISKS: [u8; 29] = [
    0xbe, 0x9d, 0x7c, 0x8a, 0x16, 0x94, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13, 0x72, 0x0e, 0xbe, 0x9d, 0x7c,
    0x8a, 0x16, 0x94, 0x7c, 0xfe, 0xc2, 0xb8, 0x00, 0x43, 0xcd, 0x13, 0xc3,
];

/// Fills the memory from 64 to 512 KiB with the counter.
/// ```text
///       mov si,dap; mov dl,[drive]; mov ax,0x4300; int 0x13; pushf; mov bx,0x1000
/// next: mov es,bx; xor di,di; mov cx,0x4000; mov eax,[counter]; rep stosd
///       add bx,0x1000; cmp bx,0x8000; jb next
///       xor ax,ax; mov es,ax; popf; ret
/// ```
const WRITE_AND_FILL_MEMORY: [u8; 46] = [
    0xbe, 0x9d, 0x7c, 0x8a, 0x16, 0x94, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13, 0x9c, 0xbb, 0x00, 0x10, 0x8e,
    0xc3, 0x31, 0xff, 0xb9, 0x00, 0x40, 0x66, 0xa1, 0x95, 0x7c, 0x66, 0xf3, 0xab, 0x81, 0xc3, 0x00, 0x10,
    0x81, 0xfb, 0x00, 0x80, 0x72, 0xe8, 0x31, 0xc0, 0x8e, 0xc0, 0x9d, 0xc3,
];
const WRITE_AT: usize = 60;

/// A new disk that boots the guest.
pub(crate) fn create_disk(path: &Path, pace: Pace) {
    fs::File::create_new(path).unwrap().set_len(DISK_BYTES).unwrap();
    write_boot_sector(path, pace, &[]);
}

/// One that boots a guest which fills 448 KiB of its memory anew between two writes.
pub(crate) fn create_disk_of_busy_guest(path: &Path) {
    create_disk(path, Pace::Full);
    write_boot_sector(path, Pace::Full, &WRITE_AND_FILL_MEMORY);
}

/// Two new disks; the guest boots from the first one, and writes each page there and then to the second one.
pub(crate) fn create_two_disks(first: &Path, second: &Path, pace: Pace) {
    create_disk(first, pace);
    write_boot_sector(first, pace, &WRITE_BOTH_DISKS);
    fs::File::create_new(second).unwrap().set_len(DISK_BYTES).unwrap();
}

/// Makes an image boot the guest, with a routine for its writes or none.
fn write_boot_sector(path: &Path, pace: Pace, routine: &[u8]) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let mut sector = [0; 512];
    sector[..CODE.len()].copy_from_slice(&CODE);
    if !routine.is_empty() {
        sector[WRITE_AT..WRITE_AT + CALL.len()].copy_from_slice(&CALL);
        sector[CODE.len()..CODE.len() + routine.len()].copy_from_slice(routine);
    }
    let pace: u32 = match pace {
        Pace::Full => 0,
        Pace::Steady => 2000,
    };
    sector[PACE_AT..PACE_AT + 4].copy_from_slice(&pace.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&sector, 0).unwrap();
}

/// What the guest has said so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Counters whose write was acknowledged, in order.
    pub(crate) acknowledged: Vec<u32>,
    /// Lines about writes that failed.
    pub(crate) errors: usize,
}

impl Heard {
    /// Reads a serial log.
    pub(crate) fn read(log: &Path) -> Heard {
        let mut heard = Heard::default();
        let text = fs::read(log).unwrap_or_default();
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for line in String::from_utf8_lossy(&text[..whole]).lines() {
            match line.split_at_checked(1) {
                Some(("W", counter)) => {
                    heard.acknowledged.extend(u32::from_str_radix(counter.trim(), 16).ok());
                }
                Some(("E", _)) => heard.errors += 1,
                // SeaBIOS says nothing on the serial port, but it may.
                _ => {}
            }
        }
        heard
    }

    /// The last acknowledged counter, 0 before the first.
    pub(crate) fn last(&self) -> u32 {
        self.acknowledged.last().copied().unwrap_or(0)
    }
}

/// Checks that the disk holds every write up to `acknowledged`, and nothing but whole pages. Returns the newest counter.
pub(crate) fn check_disk(image: &[u8], acknowledged: u32) -> u32 {
    let mut newest = 0;
    for slot in 0..SLOTS as u32 {
        let at = (AREA_START + u64::from(slot) * SLOT_BYTES) as usize;
        let page = &image[at..at + SLOT_BYTES as usize];
        let counter = u32::from_le_bytes(page[..4].try_into().unwrap());
        assert!(page.chunks(4).all(|word| word == &page[..4]), "slot {slot} is torn");
        assert!(counter == 0 || counter % SLOTS as u32 == slot, "slot {slot} has counter {counter}");
        let behind = (acknowledged.wrapping_sub(slot)) % SLOTS as u32;
        let expected = acknowledged.saturating_sub(behind);
        let expected = if expected % SLOTS as u32 == slot { expected } else { 0 };
        assert!(
            counter >= expected,
            "slot {slot} lost {expected}: it has {counter}; acknowledged {acknowledged}"
        );
        newest = newest.max(counter);
    }
    newest
}
