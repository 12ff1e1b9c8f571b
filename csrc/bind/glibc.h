// With this, a library that is built with newer versions also loads with glibc 2.28 and the libstdc++ of its time.
#pragma once

#include <new>
#include <sstream>

#ifdef __GLIBC__
// libstdc++ reads this variable, which glibc has had since 2.32, to learn if there is only one thread. There are
// several.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}

// Since gcc 9, libstdc++ has these constructors, and its headers leave them to the library.
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();

// Since gcc 11, this function throws if an allocation is larger than all memory.
namespace std {
__attribute__((weak)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

#ifdef __x86_64__
// glibc 2.34 moved these from libdl to libc under a new version, and kept the old version.
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#endif
#endif
