// SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
/*
 * The smallest program: it ends at once with status 0, or, when it is given any argument, waits for
 * a signal. Without libc (-nostdlib) where the few lines of assembly exist, else an ordinary
 * main().
 */
#if defined(__x86_64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	cmpq $1, (%rsp)\n" /* argc */
	"	jne 1f\n"
	"	movl $60, %eax\n" /* exit(0) */
	"	xorl %edi, %edi\n"
	"	syscall\n"
	"1:	movl $34, %eax\n" /* pause() */
	"	syscall\n"
	"	jmp 1b\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	ldr x0, [sp]\n" /* argc */
	"	cmp x0, #1\n"
	"	b.ne 1f\n"
	"	mov x8, #93\n" /* exit(0) */
	"	mov x0, #0\n"
	"	svc #0\n"
	"1:	mov x8, #73\n" /* ppoll(NULL, 0, NULL, NULL) */
	"	mov x0, #0\n"
	"	mov x1, #0\n"
	"	mov x2, #0\n"
	"	mov x3, #0\n"
	"	svc #0\n"
	"	b 1b\n");
#else
#include <unistd.h>

int main(int argc, char *argv[])
{
	(void)argv;
	while (argc > 1)
		pause();
	return 0;
}
#endif
