#include "textflag.h"

// The CRC of a message is the remainder of a polynomial, and so it stays when a
// piece of the message is replaced by its product with x^D mod P, D bits further
// on. VPCLMULQDQ multiplies the halves of four pieces of 128 bits at once. Bits are
// reflected, as in every CRC-32C: the lower half of a piece has the higher powers,
// and a product comes out multiplied by x. So the lower halves are multiplied by
// x^(D+63) mod P and the upper ones by x^(D-1) mod P, each reflected and in the
// upper half of its 64 bits.

// D = 2048: by the 256 bytes of one round.
DATA round<>+0(SB)/8, $0xe9a5d8be00000000
DATA round<>+8(SB)/8, $0x1426a81500000000
GLOBL round<>(SB), RODATA|NOPTR, $16

// D = 512: onto the next register.
DATA register<>+0(SB)/8, $0x1c19243b00000000
DATA register<>+8(SB)/8, $0x75bba45b00000000
GLOBL register<>(SB), RODATA|NOPTR, $16

// D = 384, 256 and 128: the lanes of a register onto its last, which stays.
DATA lanes<>+0(SB)/8, $0xa46ef4aa00000000
DATA lanes<>+8(SB)/8, $0x6051243f00000000
DATA lanes<>+16(SB)/8, $0x33ccbbbc00000000
DATA lanes<>+24(SB)/8, $0xa2158b3400000000
DATA lanes<>+32(SB)/8, $0x3743f7bd00000000
DATA lanes<>+40(SB)/8, $0x3171d43000000000
DATA lanes<>+48(SB)/8, $0
DATA lanes<>+56(SB)/8, $0
GLOBL lanes<>(SB), RODATA|NOPTR, $64

// FOLD multiplies acc by the constants in k and adds next. t is scratch.
#define FOLD(k, acc, t, next) \
	VPCLMULQDQ $0x00, k, acc, t   \
	VPCLMULQDQ $0x11, k, acc, acc \
	VPTERNLOGQ $0x96, next, t, acc

// func fold(state uint32, p []byte) uint32
TEXT ·fold(SB), NOSPLIT, $0-36
	MOVL state+0(FP), AX
	MOVQ p_base+8(FP), SI
	MOVQ p_len+16(FP), CX

	// The state goes over the first four bytes.
	VMOVD     AX, X4
	VPXORQ    (SI), Z4, Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	ADDQ      $256, SI
	SUBQ      $256, CX
	JZ        join
	VBROADCASTI32X4 round<>(SB), Z8

loop:
	FOLD(Z8, Z0, Z4, (SI))
	FOLD(Z8, Z1, Z5, 64(SI))
	FOLD(Z8, Z2, Z6, 128(SI))
	FOLD(Z8, Z3, Z7, 192(SI))
	ADDQ $256, SI
	SUBQ $256, CX
	JNZ  loop

join:
	VBROADCASTI32X4 register<>(SB), Z8
	FOLD(Z8, Z0, Z4, Z1)
	FOLD(Z8, Z0, Z4, Z2)
	FOLD(Z8, Z0, Z4, Z3)

	// The last lane is the sum of the four.
	VMOVDQU64     lanes<>(SB), Z8
	VPCLMULQDQ    $0x00, Z8, Z0, Z1
	VPCLMULQDQ    $0x11, Z8, Z0, Z2
	VPXORQ        Z1, Z2, Z1
	VEXTRACTI64X2 $3, Z0, X2
	VEXTRACTI64X2 $1, Z1, X3
	VEXTRACTI64X2 $2, Z1, X4
	VPXOR         X1, X2, X1
	VPXOR         X3, X4, X3
	VPXOR         X1, X3, X1

	// What is left are 16 bytes with the CRC of the whole.
	VMOVQ      X1, AX
	VPEXTRQ    $1, X1, BX
	VZEROUPPER
	XORQ       DX, DX
	CRC32Q     AX, DX
	CRC32Q     BX, DX
	MOVL       DX, ret+32(FP)
	RET
