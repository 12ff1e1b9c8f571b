"""The count of instructions in machine code: against counts by hand, and by another rule."""

import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.cuda_codegen import _dump, why_not
from benchmarks.machine_code import CARDS, Way, main_loops, predicted, read_amd, read_nvidia

# Two loops, one of them with pieces of 16 bytes. In it: 3 instructions; then 4 and a call, or 2 and a jump, or 5; then 3
# with the branch back. Counted are 3 + 5 + 3.
NVIDIA = """
        /*0000*/                   S2R R0, SR_TID.X ;                   /* 0x0 */
                                                                        /* 0x0 */
        /*0010*/                   LDG.E R9, desc[UR6][R8.64] ;
        /*0020*/                   IADD3 R0, R0, -0x1, RZ ;
        /*0030*/               @P0 BRA 0x10 ;
        /*0040*/                   LDG.E.128.CONSTANT R4, desc[UR6][R2.64] ;
        /*0050*/                   MUFU.RCP R5, R5 ;
        /*0060*/               @P1 BRA 0xc0 ;
        /*0070*/                   FSETP.GT.AND P2, PT, R5, 1, PT ;
        /*0080*/               @P2 BRA 0xe0 ;
        /*0090*/                   MOV R8, 0xb0 ;
        /*00a0*/                   CALL.REL.NOINC 0x180 ;
        /*00b0*/                   BRA 0x130 ;
        /*00c0*/                   FMUL R5, R5, R5 ;
        /*00d0*/                   BRA 0x130 ;
        /*00e0*/                   FMUL R5, R5, 2 ;
        /*00f0*/                   MUFU.EX2 R5, R5 ;
        /*0100*/              @!P3 FADD R5, R5, -1 ;
        /*0110*/                   NOP ;
        /*0120*/                   NOP ;
        /*0130*/                   STG.E.128.STRONG.SM desc[UR6][R2.64], R4 ;
        /*0140*/                   ISETP.GE.AND P0, PT, R0, R1, PT ;
        /*0150*/              @!P0 BRA 0x40 ;
        /*0160*/                   EXIT ;
        /*0170*/                   BRA 0x170 ;
        /*0180*/                   FMUL R5, R5, R5 ;
        /*0190*/                   RET.REL.NODEC R8 0x0 ;
"""

AMD = """
kernel:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:
	global_load_dwordx4 v[0:3], v[4:5], off
	s_nop 0
	v_exp_f32_e32 v0, v0
	s_cbranch_execz .LBB0_3
	v_mul_f32_e32 v0, v0, v0
.LBB0_3:
	global_store_dwordx4 v[4:5], v[0:3], off
	s_cbranch_scc1 .LBB0_1
	s_endpgm
"""


def test_the_longest_way_without_a_call() -> None:
    assert main_loops(read_nvidia(NVIDIA)) == [Way(loads=1, stores=1, instructions=3 + 5 + 3, special=2)]


def test_a_call_on_a_condition_may_be_passed() -> None:
    """ptxas leaves some loops by one."""
    left_by_a_call = NVIDIA.replace("@!P0 BRA 0x40 ;", "@P0 CALL.REL.NOINC 0x160 ;").replace("EXIT ;", "BRA 0x40 ;")
    assert main_loops(read_nvidia(left_by_a_call)) == [Way(loads=1, stores=1, instructions=3 + 5 + 4, special=2)]


def test_amd() -> None:
    assert main_loops(read_amd(AMD)) == [Way(loads=1, stores=1, instructions=6, special=1)]


def test_without_a_loop_the_whole_way_counts() -> None:
    straight = re.sub(r".*@!P0 BRA 0x40.*\n", "", NVIDIA)
    straight = re.sub(r".*@P0 BRA 0x10 .*\n", "", straight)
    assert main_loops(read_nvidia(straight)) == [Way(loads=1, stores=1, instructions=3 + 3 + 5 + 2 + 1, special=2)]


def test_predictions() -> None:
    """Far from both ends the slower of the two decides; where both take as long, the fourth root of a half is left."""
    seconds = 1.75e9 * 132 * 128 * 0.85  # instructions in one
    assert predicted(CARDS["h100"], seconds, 0, 3.0e12) == pytest.approx(0.5**0.25)
    assert predicted(CARDS["h100"], seconds / 100, 0, 3.0e12) == pytest.approx(1)
    assert predicted(CARDS["h100"], 100 * seconds, 0, 3.0e12) == pytest.approx(0.01)
    assert predicted(CARDS["h100"], 0, seconds, 3.0e12) == pytest.approx(1 / 8, rel=1e-3)  # 16 lanes instead of 128


@pytest.mark.skipif(bool(why_not()) or not shutil.which("c++filt"), reason=why_not())
def test_loops_without_branches_have_all_between_their_ends() -> None:
    """Another count of the library's own kernels: where a loop has no branch but the one back, from address to address."""
    text, found = "\n".join(_dump("-sass", "-arch", "sm_90")), 0
    for kernel in re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]:
        if "VectorsI" not in kernel.partition("\n")[0]:
            continue
        branches = [
            (int(at, 16), int(to, 16))
            for at, to in re.findall(r"/\*([0-9a-f]+)\*/ .*\bBRA (?:U?P\d, )?(0x\w+)", kernel)
        ]
        moves = [int(at, 16) for at in re.findall(r"/\*([0-9a-f]+)\*/ .*\b(?:LDG|STG)\S*\.128", kernel)]
        ends = {at for at, _ in branches} | {to for _, to in branches}
        loops = [
            (to, at)
            for at, to in branches
            if any(to < move < at for move in moves) and not any(to < end < at for end in ends)
        ]
        if loops and "rows_kernel" in kernel:
            ((first, last),) = loops
            (way,) = main_loops(read_nvidia(kernel))
            assert way.instructions == (last - first) // 16 + 1
            found += 1
    assert found > 10
