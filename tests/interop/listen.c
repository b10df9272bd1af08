/* Prints what the kernel gives to a raw socket of the Mobility Header: from whom, and the message in hexadecimal digits. For
   a guest that has no other program. Answers nothing. */
#include <arpa/inet.h>
#include <stdio.h>

int main(void) {
    int fd = socket(AF_INET6, SOCK_RAW, 135);
    unsigned char message[2048];
    for (;;) {
        struct sockaddr_in6 from;
        socklen_t from_size = sizeof from;
        char text[INET6_ADDRSTRLEN];
        long size = recvfrom(fd, message, sizeof message, 0, (struct sockaddr *)&from, &from_size);
        if (size < 0)
            continue;
        printf("HEARD %s ", inet_ntop(AF_INET6, &from.sin6_addr, text, sizeof text));
        for (long at = 0; at < size; at++)
            printf("%02x", message[at]);
        printf(".\n");
        fflush(stdout);
    }
}
