// SPDX-License-Identifier: BSL-1.0
#pragma once

// WITH_SANITIZER: 1 in a build with AddressSanitizer or ThreadSanitizer, else 0.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WITH_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define WITH_SANITIZER 1
#endif
#endif
// WITH_THREAD_SANITIZER: 1 in a build with ThreadSanitizer, else 0.
#if defined(__SANITIZE_THREAD__)
#define WITH_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_THREAD_SANITIZER 1
#endif
#endif
#ifndef WITH_THREAD_SANITIZER
#define WITH_THREAD_SANITIZER 0
#endif
#ifndef WITH_SANITIZER
#define WITH_SANITIZER 0
#endif
