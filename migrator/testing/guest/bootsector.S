# A guest in one disk sector: it dirties memory at a set pace, counts, and says that it lives.
#
#   as --32 bootsector.S -o bootsector.o
#   ld -m elf_i386 -Ttext 0x7c00 -e start --oformat binary bootsector.o -o bootsector.bin
#
# (python -m migrator.testing.guest.build does both.) The firmware loads it at 0x7c00. It fills its region,
# says "A" on the first serial port, starts the timer and then adds one to the first byte of every page, pass after
# pass, at so many pages a tick; between ticks it sleeps. The pace may grow. Every few ticks it says "B".
# It powers off when the power button is pressed (system_powerdown) and starts afresh after a reset.
#
# How it behaves is decided by the parameters at the end of the sector; what it has done stands in the counters at
# 0x3ff000, which the firmware leaves alone. migrator/testing/guest/__init__.py knows both layouts.

        .set    COUNTERS, 0x3ff000
        .set    MAGIC, 0           # "BEAT" once the region is filled, 0 before
        .set    BOOTS, 4           # starts since the machine was switched on: the only one that a reset keeps
        .set    TICKS, 8           # timer interrupts
        .set    PASSES, 16         # whole passes over the region, 64 bits
        .set    BEAT, 24           # ticks until the next "B"
        .set    PHASE, 28          # ticks until the pattern turns
        .set    ON, 32             # 1: dirtying, 0: the quiet part of the pattern

        .set    COM1, 0x3f8
        .set    PM1_STATUS, 0x600  # ACPI registers, where SeaBIOS puts them on q35 and pc
        .set    PM1_ENABLE, 0x602
        .set    PM1_CONTROL, 0x604
        .set    POWER_OFF, 0x2000

        .text
        .code16
        .globl  start
start:  cli
        xorw    %ax, %ax
        movw    %ax, %ds
        inb     $0x92, %al         # open the A20 gate
        orb     $2, %al
        andb    $0xfe, %al
        outb    %al, $0x92
        lgdtl   gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $start, %esp
        movl    $COUNTERS, %ebx    # stays, also for the timer's handler
        cld

        movl    BOOTS(%ebx), %edx
        incl    %edx
        movl    %ebx, %edi
        xorl    %eax, %eax
        movl    $16, %ecx
        rep stosl
        movl    %edx, BOOTS(%ebx)
        incb    BEAT(%ebx)
        incb    ON(%ebx)
        movl    on_ticks, %eax     # 0, no pattern: counts down from 2**32
        movl    %eax, PHASE(%ebx)

        movl    region_start, %edi
        movl    region_pages, %ecx
        jecxz   filled
fill:   movw    $0x5a00, (%edi)    # 0 passes, and a byte that keeps the page from ever being all zero
        addl    $4096, %edi
        loop    fill
filled:
        movl    $0x54414542, (%ebx)
        movw    $COM1, %dx
        movb    $'A', %al
        outb    %al, %dx

        movw    $PM1_ENABLE, %dx   # let the power button set its bit
        movw    $0x100, %ax
        outw    %ax, %dx

        movb    $0x11, %al         # interrupt controller: the timer alone, at vector 32, acknowledged by itself
        outb    %al, $0x20
        movb    $32, %al
        outb    %al, $0x21
        movb    $4, %al
        outb    %al, $0x21
        movb    $3, %al
        outb    %al, $0x21
        movb    $0xfe, %al
        outb    %al, $0x21
        incl    %eax               # 0xff
        outb    %al, $0xa1
        movb    $0x34, %al         # timer: channel 0, periodic
        outb    %al, $0x43
        movb    timer_divisor, %al
        outb    %al, $0x40
        movb    timer_divisor + 1, %al
        outb    %al, $0x40
        lidtl   idt_pointer

        movl    pages_per_tick, %esi
        xorl    %ebp, %ebp         # the tick last spent
        xorl    %edx, %edx         # 1/256 pages that may be dirtied before the next tick
        sti

next_pass:
        movl    region_start, %edi
        movl    region_pages, %ecx
        jecxz   idle
next_page:
        testb   $1, ON(%ebx)
        jz      sleep
        testl   %esi, %esi         # 0: as fast as it goes
        jz      dirty
        subl    $256, %edx
        jae     dirty
        addl    $256, %edx
sleep:  cli                        # sti lets no interrupt in before hlt, so none is slept through
        movl    TICKS(%ebx), %eax
        cmpl    %ebp, %eax
        jne     woken
        sti
        hlt
        jmp     sleep
woken:  sti
        movl    %eax, %ebp         # ticks missed are not made up for
        movzbl  %dl, %edx
        addl    %esi, %edx
        jmp     next_page
dirty:  incb    (%edi)
        addl    $4096, %edi
        loop    next_page
        call    forget
        addl    $1, PASSES(%ebx)
        adcl    $0, PASSES + 4(%ebx)
        movl    pass_limit, %eax
        cmpl    PASSES(%ebx), %eax
        jne     next_pass
idle:   hlt
        jmp     idle

tick:   pushal
        call    forget
        incl    TICKS(%ebx)
        movl    growth, %eax
        addl    %eax, 4(%esp)      # the %esi that popal will restore
        decl    PHASE(%ebx)
        jnz     1f
        xorb    $1, ON(%ebx)
        movzbl  ON(%ebx), %eax
        movl    off_ticks(, %eax, 4), %eax
        movl    %eax, PHASE(%ebx)
        movl    pages_per_tick, %eax
        movl    %eax, 4(%esp)
1:      decl    BEAT(%ebx)
        jnz     2f
        movl    beat_ticks, %eax
        movl    %eax, BEAT(%ebx)
        movw    $COM1, %dx
        movb    $'B', %al
        outb    %al, %dx
2:      movw    $PM1_STATUS, %dx
        inw     %dx, %ax
        testb   $1, %ah
        movw    $POWER_OFF, %ax
        jnz     3f
        movl    sleep_tick, %eax
        cmpl    TICKS(%ebx), %eax
        jne     4f
        movw    sleep_control, %ax
3:      movw    $PM1_CONTROL, %dx
        outw    %ax, %dx
4:      popal
        pushl   8(%esp)            # what iret does: a KVM that has to emulate this mode does not know iret
        popfl
        ret     $8

# Drop all cached translations, as an operating system does at every switch between its tasks. Under TCG QEMU before
# 9.0 does not see a write through a translation that is older than the last look at what is dirty, so without this
# it would move stale pages.
forget: movl    %cr4, %eax
        xorb    $0x80, %al         # page-global enable: any change of it
        movl    %eax, %cr4
        ret

        .balign 4
gdt:    .long   0, 0
        .long   0x0000ffff, 0x00cf9a00  # 8: code, flat
        .long   0x0000ffff, 0x00cf9200  # 16: data, flat
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt:    .word   tick, 8, 0x8e00, 0      # vector 32, the only one
idt_pointer:
        .word   33 * 8 - 1
        .long   idt - 32 * 8

        .org    0x1d0
parameters:
region_start:   .long   0x400000
region_pages:   .long   0
pages_per_tick: .long   0          # in 1/256 pages; 0: as fast as it goes, without sleep
pass_limit:     .long   0          # idle after so many passes; 0: never
off_ticks:      .long   0
on_ticks:       .long   0          # 0: no pattern
beat_ticks:     .long   2
sleep_tick:     .long   0          # write sleep_control at this tick; 0: never
sleep_control:  .word   POWER_OFF
timer_divisor:  .word   11932      # of 1193182 Hz: 10 ms
growth:         .long   0          # added to the pace each tick; begins anew when the pattern turns
        .org    0x1fe
        .word   0xaa55
