// A library that was built beside newer ones loads beside glibc 2.28 and the libstdc++ of its time too.
#pragma once

#include <new>
#include <sstream>

#ifdef __GLIBC__
// libstdc++ asks whether there is one thread only, of a variable that glibc has had since 2.32. There are several.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}

// Of libstdc++ since gcc 9: its headers leave them to the library.
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();

// What a size beyond all memory throws, since gcc 11.
namespace std {
__attribute__((weak)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

#ifdef __x86_64__
// 2.34 brought them from libdl to libc under a new version, and kept the old one.
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#endif
#endif
