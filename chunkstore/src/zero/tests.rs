use super::is_zero;

#[test]
fn finds_a_single_bit_anywhere() {
    for len in [0, 1, 15, 16, 255, 256, 257, 4096, 4099] {
        let mut data = vec![0_u8; len];
        assert!(is_zero(&data));
        for at in 0..len {
            data[at] = 1 << (at % 8);
            assert!(!is_zero(&data), "bit at {at} of {len}");
            data[at] = 0;
        }
    }
}
