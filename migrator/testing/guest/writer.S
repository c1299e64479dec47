# A guest that writes to its disk all along: sector after sector in turn, each filled with the number of the write.
#
# It stays in real mode and asks its firmware to write. It says "A" on the first serial port when it starts and "B" when
# it has written so many sectors, and then sleeps until the clock's next tick (18.2 a second). How many writes are done
# stands at 0x8000, behind the text "WRIT". migrator/testing/guest/writer.py knows what its disk has to look like then.

        .set    MARK, 0x8000
        .set    DONE, 0x8004
        .set    BUFFER, 0x9000
        .set    COM1, 0x3f8
        .set    CLOCK, 0x46c

        .text
        .code16
        .globl  start
start:  cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        cld
        movb    %dl, drive
        movl    $0x54495257, MARK
        movl    $0, DONE
        movb    $'A', %al
        call    say
burst:  movw    writes, %bp
next:   movl    %cr4, %eax         # drop cached translations: TCG before 9.0 does not see writes through old ones
        xorb    $0x80, %al
        movl    %eax, %cr4
        movl    DONE, %eax
        incl    %eax
        movw    $BUFFER, %di
        movw    $128, %cx
        rep stosl
        xorl    %edx, %edx
        divl    sectors
        incl    %edx
        movl    %edx, block
        movw    $0x4300, %ax
        movb    drive, %dl
        movw    $packet, %si
        int     $0x13
        jc      failed
        incl    DONE
        decw    %bp
        jnz     next
        movb    $'B', %al
        call    say
        movl    CLOCK, %ebx
1:      sti
        hlt
        cmpl    %ebx, CLOCK
        je      1b
        jmp     burst
failed: movb    $'E', %al
        call    say
        jmp     burst
say:    movw    $COM1, %dx
        outb    %al, %dx
        ret

drive:  .byte   0
        .balign 4
packet: .byte   16, 0
        .word   1
        .word   BUFFER, 0
block:  .long   0, 0

        .org    0x1d0
sectors:        .long   64         # it goes round in so many, from the second sector of the disk on
writes:         .word   4          # before it sleeps
        .org    0x1fe
        .word   0xaa55
