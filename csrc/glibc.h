// A library that was built beside a newer glibc loads beside 2.28 too.
#pragma once

#include <cstdlib>

#ifdef __GLIBC__
// libstdc++ asks whether there is one thread only, of a variable that glibc has had since 2.32. There are several.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}

#ifdef __x86_64__
// 2.34 brought them from libdl to libc under a new version, and kept the old one.
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#endif
#endif
