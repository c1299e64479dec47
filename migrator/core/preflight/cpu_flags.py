"""CPUID words as the kernel names their bits. Pure."""

from __future__ import annotations

from collections.abc import Mapping

#: By register: the names in /proc/cpuinfo from bit 0 on; a dash stands for what has none, or none that matters.
_BITS = {
    "CPUID[0x1].EDX": "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts "
    "acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    "CPUID[0x1].ECX": "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid "
    "dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand -",
    "CPUID[0x7,0x0].EBX": "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a "
    "avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni "
    "avx512bw avx512vl",
    "CPUID[0x7,0x0].ECX": "- avx512vbmi umip pku - waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni "
    "avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd",
    "CPUID[0x7,0x0].EDX": "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - "
    "tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 - - flush_l1d arch_capabilities",
    "CPUID[0x7,0x1].EAX": "- - - - avx_vnni avx512_bf16",
    "CPUID[0xd,0x1].EAX": "xsaveopt xsavec xgetbv1 xsaves",
    "CPUID[0x80000001].EDX": "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - "
    "lm 3dnowext 3dnow",
    "CPUID[0x80000001].ECX": "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs "
    "xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    "CPUID[0x80000008].EBX": "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd",
}


def guest_flags(words: Mapping[str, int]) -> frozenset[str]:
    """Return the flags, as in /proc/cpuinfo, that CPUID words of a guest show.

    :param words: by register, as :attr:`migrator.core.preflight.facts.Facts.cpu_features` names them.
    """
    return frozenset(
        name
        for register, names in _BITS.items()
        for bit, name in enumerate(names.split())
        if name != "-" and words.get(register, 0) >> bit & 1
    )
